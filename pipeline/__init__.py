"""The distributed job: plan units of work, restore and score each, commit it, report.

read ▸ degrade ▸ sample ▸ score ▸ write, one unit of a shard at a time; a unit is done if and only
if its commit record is valid, and running again does the rest.
"""
