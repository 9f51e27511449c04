"""The run: restore and score a unit, commit it, in one process or on Ray."""
