"""Makes `python -m vimamba` the `vimamba` command, for launchers that start modules."""

import sys

from vimamba.cli import main

if __name__ == "__main__":  # and not in the processes that it starts
    sys.exit(main())
