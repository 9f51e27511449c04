"""The command line and the ready job files."""
