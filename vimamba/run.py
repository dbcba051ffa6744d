"""Runs a script, such as timm's own train.py, with vimamba's models registered in timm.

timm has no plug-ins, so a script knows the models only if its process imports vimamba:

    python -m vimamba.run train.py --model vmamba_tiny_s1l8 --data-dir DATA
    torchrun --nproc-per-node 8 -m vimamba.run train.py --model vmamba_tiny_s1l8 --data-dir DATA
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import vimamba  # noqa: F401  registers every model with timm

USAGE = "usage: python -m vimamba.run SCRIPT.py [ARGUMENT ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a script as `python SCRIPT ARGUMENT ...` would.

    Args:
        argv: The script and its arguments; those of the process by default.

    Returns:
        0, or 2 if there is no such script.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    script = Path(args[0])
    if not script.is_file():
        print(f"error: there is no script {args[0]}\n{USAGE}", file=sys.stderr)
        return 2
    sys.argv = args
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
