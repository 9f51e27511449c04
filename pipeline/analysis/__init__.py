"""What came out: rows to numbers, report, comparison, sweep, SQL."""
