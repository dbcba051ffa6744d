"""Makes `python -m vimamba` the `vimamba` command, for launchers that start modules."""

import sys

from vimamba.cli import main

sys.exit(main())
