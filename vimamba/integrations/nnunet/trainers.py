"""nnU-Net's trainer with AdamW, for our networks.

The names of U-Mamba's fork are kept, so that models trained with it can be used for prediction.
Environment variables shorten training: VIMAMBA_NNUNET_EPOCHS, and VIMAMBA_NNUNET_ITERS, the
iterations per epoch, with a fifth as many for validation.
"""

import os
from typing import Any, ClassVar

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from timm.optim import create_optimizer_v2
from torch import nn

from vimamba.errors import VimambaError
from vimamba.integrations.nnunet.network import CLASS_NAME, PlansNetwork
from vimamba.integrations.nnunet.plans import plan_umamba

__all__ = [
    "nnUNetTrainerUMambaBot",
    "nnUNetTrainerUMambaBotNoAMP",
    "nnUNetTrainerUMambaEnc",
    "nnUNetTrainerUMambaEncNoAMP",
    "nnUNetTrainerVimambaEncoder",
    "nnUNetTrainerVimambaEncoderNoAMP",
]


class TrainerError(VimambaError):
    """A trainer cannot work as requested; the message says why and what would work."""


def _read_count(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise TrainerError(f"{variable}={text} must be a whole number from 1")
    return int(text)


class nnUNetTrainerVimambaEncoder(nnUNetTrainer):  # noqa: N801  nnU-Net's way of naming
    """Trains the network of a configuration added by `vimamba nnunet plan`."""

    amp: ClassVar[bool] = True

    # nnU-Net reads the names of these arguments and writes them into the checkpoint
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        # from Swin-UMamba (arXiv:2402.03302), which was also trained with nnU-Net
        self.initial_lr = 1e-4
        self.weight_decay = 0.05
        self.num_epochs = _read_count("VIMAMBA_NNUNET_EPOCHS", self.num_epochs)
        iterations = _read_count("VIMAMBA_NNUNET_ITERS", self.num_iterations_per_epoch)
        self.num_iterations_per_epoch = iterations
        self.num_val_iterations_per_epoch = max(1, iterations // 5)
        if not self.amp:
            self.grad_scaler = None

    @classmethod
    def build_network_architecture(  # type: ignore[override]
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network, for training and for prediction."""
        if configuration_manager.network_arch_class_name != CLASS_NAME:
            raise TrainerError(
                f"{cls.__name__} trains configurations with a network of vimamba, not "
                f"{configuration_manager.network_arch_class_name}; add one with "
                "`vimamba nnunet plan`, and select its plans with -p"
            )
        kwargs = configuration_manager.network_arch_init_kwargs
        return PlansNetwork(
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
            **{**kwargs, "amp": cls.amp and kwargs.get("amp", True)},
        )

    def configure_optimizers(  # type: ignore[override]
        self,
    ) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """AdamW, with the network's own rules for weight decay, and nnU-Net's schedule."""
        compiled: Any = self.network
        net = getattr(compiled, "_orig_mod", compiled)
        optimizer = create_optimizer_v2(
            net.network, opt="adamw", lr=self.initial_lr, weight_decay=self.weight_decay
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)


class nnUNetTrainerVimambaEncoderNoAMP(nnUNetTrainerVimambaEncoder):  # noqa: N801
    """The same in float32."""

    amp = False


class nnUNetTrainerUMambaBot(nnUNetTrainerVimambaEncoder):  # noqa: N801
    """Trains U-Mamba Bot with the sizes of the U-Net of any nnU-Net configuration."""

    place: ClassVar[str] = "bot"

    @classmethod
    def build_network_architecture(  # type: ignore[override]
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Make the network, for training and for prediction."""
        patch_size = configuration_manager.patch_size
        kwargs = plan_umamba(configuration_manager.network_arch_init_kwargs, patch_size)
        return PlansNetwork(
            num_input_channels,
            num_output_channels,
            network=f"umamba_{cls.place}_{len(patch_size)}d",
            network_kwargs=kwargs,
            strides=kwargs["strides"],
            deep_supervision=enable_deep_supervision,
            amp=cls.amp,
        )


class nnUNetTrainerUMambaBotNoAMP(nnUNetTrainerUMambaBot):  # noqa: N801
    """The same in float32."""

    amp = False


class nnUNetTrainerUMambaEnc(nnUNetTrainerUMambaBot):  # noqa: N801
    """Trains U-Mamba Enc with the sizes of the U-Net of any nnU-Net configuration."""

    place = "enc"


class nnUNetTrainerUMambaEncNoAMP(nnUNetTrainerUMambaEnc):  # noqa: N801
    """The same in float32."""

    amp = False
