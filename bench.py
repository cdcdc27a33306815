"""The front door of the lab; `bench.py --help` lists its commands."""

import sys

from harness.cli import main

if __name__ == "__main__":
    sys.exit(main())
