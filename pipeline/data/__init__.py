"""What comes in: shards, the plan, a unit's samples; making shards."""
