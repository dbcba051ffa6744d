"""Fixtures that several parts of the tests share."""

import sys
from pathlib import Path

# `tests.parity.official` is imported by its full name, whatever pytest's import mode
sys.path.insert(0, str(Path(__file__).parents[1]))
