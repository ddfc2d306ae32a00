"""`python -m repstitch` is the command line."""

import sys

from repstitch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
