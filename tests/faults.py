"""`python tests/faults.py --help`: see kit/faults.py."""

from kit.faults import main

main()
