"""Lightning, from the package in use: `lightning.pytorch` or `pytorch_lightning`.

The two packages have the same code, but a Trainer of one rejects modules, data modules and
callbacks of the other. All of vimamba imports Lightning from here and so matches the rest of the
program: the package that is already imported, else `lightning` if it is installed (torchgeo
    requires it), else `pytorch_lightning`, which the extra `train` installs.
"""

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any


def choose_package() -> str:
    """Name of the package to import from."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        if name in sys.modules:
            return name
    spec = importlib.util.find_spec("lightning")
    places = (spec and spec.submodule_search_locations) or ()
    found = any((Path(place) / "pytorch").is_dir() for place in places)
    return "lightning.pytorch" if found else "pytorch_lightning"


PACKAGE = choose_package()

if TYPE_CHECKING or PACKAGE == "pytorch_lightning":
    from pytorch_lightning import (
        Callback,
        LightningDataModule,
        LightningModule,
        Trainer,
        callbacks,
        loggers,
        plugins,
        profilers,
        strategies,
        tuner,
    )
    from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
    from pytorch_lightning.plugins import TorchCheckpointIO
    from pytorch_lightning.trainer.states import TrainerFn, TrainerStatus
    from pytorch_lightning.utilities.exceptions import MisconfigurationException
    from pytorch_lightning.utilities.seed import isolate_rng
else:
    from lightning.pytorch import (
        Callback,
        LightningDataModule,
        LightningModule,
        Trainer,
        callbacks,
        loggers,
        plugins,
        profilers,
        strategies,
        tuner,
    )
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.plugins import TorchCheckpointIO
    from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.seed import isolate_rng

__all__ = [
    "PACKAGE",
    "Callback",
    "LightningArgumentParser",
    "LightningCLI",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "TorchCheckpointIO",
    "Trainer",
    "TrainerFn",
    "TrainerStatus",
    "callbacks",
    "isolate_rng",
    "loggers",
    "name_in_use",
    "plugins",
    "profilers",
    "strategies",
    "tuner",
]

_CLASS = re.compile(r"(?:lightning\.pytorch|pytorch_lightning)((?:\.\w+)+)")


def name_in_use(settings: Any) -> Any:
    """Settings with Lightning's classes renamed to the package in use.

    Args:
        settings: Values as in YAML, possibly nested.
    """
    if isinstance(settings, dict):
        return {key: name_in_use(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [name_in_use(value) for value in settings]
    if isinstance(settings, str) and (found := _CLASS.fullmatch(settings)):
        return PACKAGE + found[1]
    return settings
