"""`python -m lep`."""

from lep.cli import main

main()
