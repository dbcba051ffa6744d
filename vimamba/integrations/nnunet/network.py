"""A segmentation network with the interface of nnU-Net's own networks.

nnU-Net builds the network named in a plan from the plan's `arch_kwargs`, switches deep supervision
with `decoder.deep_supervision`, and expects outputs from fine to coarse, one for each of `strides`
except the last.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.checkpoints import StateDict
from vimamba.networks import Segmenter, create_segmenter, list_segmenters

# `network_class_name` in a plan
CLASS_NAME = "vimamba.integrations.nnunet.PlansNetwork"
# networks whose sizes come from the plan
UMAMBA = [f"umamba_{place}_{dims}d" for place in ("bot", "enc") for dims in (2, 3)]
# networks that plan their stages for a patch and its spacing, as nnU-Net does
PLANNED = [name for name in list_segmenters() if name.startswith("vss_unet_3d")]


def make_network(
    network: str, input_channels: int, num_classes: int, kwargs: Mapping[str, Any]
) -> Segmenter:
    """Make a network by name.

    Args:
        network: A model that `vimamba.create_segmenter` takes.
        input_channels: Channels of the images.
        num_classes: Channels of the logits.
        kwargs: Additional arguments of `vimamba.create_segmenter`.
    """
    # output layers of all stages, which are in U-Mamba's files even if unused
    args = {"aux": True, **kwargs} if network in (*UMAMBA, *PLANNED) else kwargs
    return create_segmenter(network, in_chans=input_channels, num_classes=num_classes, **args)


class PlansNetwork(nn.Module):
    """The network of an nnU-Net plan.

    nnU-Net leaves the coarsest output out of its loss. A network with fewer outputs than `strides`
    require repeats its coarsest one at half the size, so that none of its own is left out.

    Args:
        input_channels: Channels of the images.
        num_classes: Channels of the logits.
        network: A model that `vimamba.create_segmenter` takes.
        network_kwargs: Additional arguments of that network.
        strides: Strides from each output to the next, for each dimension, (1, ..., 1) first; the
            last leads to the network's coarsest map and has no output.
        deep_supervision: Return the outputs of all resolutions, not only the image's.
        amp: Run under the surrounding autocast; in float32 if False.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        network: str,
        strides: Sequence[Sequence[int]],
        network_kwargs: Mapping[str, Any] | None = None,
        deep_supervision: bool = True,
        amp: bool = True,
    ) -> None:
        super().__init__()
        self.network = make_network(network, input_channels, num_classes, network_kwargs or {})
        self.num_outputs = len(strides) - 1
        self.deep_supervision = deep_supervision
        self.amp = amp
        self.register_load_state_dict_pre_hook(_rename_official)

    @property
    def decoder(self) -> nn.Module:
        """The object on which nnU-Net sets `deep_supervision`."""
        return self

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(N, C_in, ...) to logits (N, num_classes, ...), or those of all resolutions."""
        if self.amp:
            return self._run(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._run(x.float())

    def _run(self, x: Tensor) -> Tensor | list[Tensor]:
        if not self.deep_supervision:
            return self.network(x)
        outputs = self.network.forward_all(x)
        while len(outputs) < self.num_outputs:
            outputs.append(F.interpolate(outputs[-1], scale_factor=0.5))
        return outputs


def _rename_official(net: nn.Module, state: StateDict, prefix: str, *_: Any) -> None:
    """Let checkpoints of nnU-Net forks be loaded, which use the authors' parameter names."""
    if any(key.startswith(f"{prefix}network.") for key in state):
        return
    assert isinstance(net, PlansNetwork)
    official = {key.removeprefix(prefix): state.pop(key) for key in list(state)}
    renamed = net.network.from_official(official)
    state.update({f"{prefix}network.{key}": value for key, value in renamed.items()})
