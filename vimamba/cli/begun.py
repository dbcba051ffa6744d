"""Commands that train many runs and go on where they stopped: what they refuse."""

import os
from pathlib import Path
from typing import Any

from vimamba.cli.options import TYPED_TO_SHORT
from vimamba.errors import UsageError
from vimamba.runs import differing, flatten


def check_alone(command: str, instead: str) -> None:
    """Fail where something else started several processes of a command.

    Raises:
        UsageError: Says what starts further processes.
    """
    if "LOCAL_RANK" in os.environ or os.environ.get("SLURM_NTASKS", "1") != "1":
        raise UsageError(f"start {command} in one process; {instead}")


def refuse_changes(config: dict[str, Any], kept: dict[str, Any], out: Path) -> None:
    """Fail if a folder was begun with other settings.

    Args:
        config: Settings of its runs as they are asked for now.
        kept: Those that it was begun with.
        out: The folder.

    Raises:
        UsageError: Names the first setting that differs.
    """
    now, then = flatten(config), flatten(kept)
    for name in differing([now, then]):
        option = f"--{name.replace('.init_args', '')}"
        raise UsageError(
            f"{TYPED_TO_SHORT.get(option, option)} {now.get(name)}: {out} was begun with "
            f"{then.get(name)}; name another --out"
        )
