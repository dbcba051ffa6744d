"""The table of configurations that were recorded from original models, sorted by family."""

from tests.parity.rows import networks, plain, staged

VARIANTS = [*staged.ROWS, *plain.ROWS, *networks.ROWS]
