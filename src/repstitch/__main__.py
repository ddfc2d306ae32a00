"""Run the command line with `python -m repstitch`."""

import sys

from repstitch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
