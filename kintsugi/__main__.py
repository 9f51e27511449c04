"""`python -m kintsugi`: the command."""

from kintsugi.jobs.cli import main

main()
