"""`python -m pydstp` is the `pydstp` command."""

import sys

from pydstp.cli import main

if __name__ == "__main__":
    sys.exit(main())
