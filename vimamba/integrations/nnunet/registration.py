"""Registers our trainers with nnU-Net, which searches its own modules and folders by name."""

import importlib
import importlib.util
from pathlib import Path


def require_nnunet() -> None:
    """Fail with an install hint if nnU-Net is missing.

    Raises:
        ModuleNotFoundError: nnunetv2 is not installed.
    """
    if importlib.util.find_spec("nnunetv2") is None:
        text = 'nnunetv2 is not installed; install it with: pip install "vimamba[nnunet]"'
        raise ModuleNotFoundError(text, name="nnunetv2")


def register() -> list[str]:
    """Register our trainers with nnU-Net in this process; returns their names.

    Processes that nnU-Net starts for several GPUs do not know them; see `trainer_folder`.
    """
    require_nnunet()
    host = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    trainers = importlib.import_module("vimamba.integrations.nnunet.trainers")
    for name in trainers.__all__:
        setattr(host, name, getattr(trainers, name))
    return list(trainers.__all__)


def trainer_folder() -> Path:
    """Folder for the environment variable `nnUNet_extTrainer` of nnU-Net 2.8 and later.

    With it nnU-Net's own commands find our trainers, on any number of GPUs.
    """
    return Path(__file__).parent / "ext"
