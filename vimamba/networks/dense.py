"""Base class of networks for dense prediction.

Every network pads its images with zeros, right and below, to whole cells of its coarsest map and
crops the logits, so any height and width works, and cells stay aligned with pixels.
"""

from collections.abc import Mapping
from typing import Any, cast

import timm
from torch import Size, Tensor, nn

from vimamba.layers import crop, pad_to_cells, resize
from vimamba.names import unknown_name
from vimamba.networks.network import Network
from vimamba.networks.registry import create_network, find_network, list_networks
from vimamba.timm_names import is_address, is_timm_model, read_address


class DenseNetwork(Network):
    """Images or volumes in, logits of their own size out.

    Args:
        cell: Pixels per cell of the coarsest map, for each spatial dimension.
        num_classes: Channels of the logits.
        in_chans: Channels of the images.
        pretrained_cfg: See `Network`.
    """

    # minimum cells per side of the coarsest map; an instance norm needs more than one
    fewest_cells = 1

    def __init__(
        self,
        cell: tuple[int, ...],
        *,
        num_classes: int,
        in_chans: int,
        pretrained_cfg: dict[str, Any],
    ) -> None:
        super().__init__(in_chans, pretrained_cfg={**pretrained_cfg, "num_classes": num_classes})
        self.cell = cell
        self.num_classes = num_classes

    def pad(self, x: Tensor) -> Tensor:
        """Pad (N, C_in, *size) with zeros at the end of each axis to whole cells.

        Raises:
            ValueError: `x` has another number of dimensions.
        """
        if x.ndim != len(self.cell) + 2:
            raise ValueError(
                f"x of {x.ndim} dimensions must have {len(self.cell) + 2}: batch, channels and "
                f"{len(self.cell)} spatial"
            )
        return pad_to_cells(x, list(self.cell), self.fewest_cells)

    def to_pixels(self, logits: Tensor, size: Size, padded: Size) -> Tensor:
        """Resize and crop logits of a padded image to every pixel of the image.

        Args:
            logits: (N, num_classes, *cells).
            size: Size of the image.
            padded: Size of the padded image.
        """
        if logits.shape[2:] != padded:
            logits = resize(logits, padded)
        return crop(logits, size, padded)


class EncodedNetwork(DenseNetwork):
    """Base of networks whose body is a timm model with stages, `encoder`."""

    @property
    def body(self) -> nn.Module:
        """The encoder."""
        return cast(nn.Module, self.encoder)

    def encode(self, x: Tensor) -> Any:
        """Images (N, C_in, H, W) to the maps of all its stages, fine to coarse."""
        return cast(Any, self.encoder).forward_intermediates(x, intermediates_only=True)


def list_whole(task: str, on_backbone: str) -> list[str]:
    """Names of the networks for a task, except the one with a head on a backbone."""
    return [name for name in list_networks(task) if name != on_backbone]


def create_dense(
    model: str,
    *,
    task: str,
    on_backbone: str,
    parts: Mapping[str, Any],
    defaults: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> Network:
    """Create a whole network by name, or a head on a timm model.

    Args:
        model: A name of either kind.
        task: Task of the network.
        on_backbone: Registered name of the network with a head on a backbone.
        parts: Arguments for that one only; None means the value in `defaults`.
        defaults: See `parts`.
        arguments: Arguments of all networks for the task.

    Raises:
        ValueError: An unknown name, or an argument that does not fit the model.
    """
    if arguments["num_classes"] < 1:
        raise ValueError(f"num_classes={arguments['num_classes']} must be at least 1")
    whole = list_whole(task, on_backbone)
    given = {name: value for name, value in parts.items() if value is not None}
    if model in whole:
        for name, value in given.items():
            raise ValueError(
                f"{name}={value!r} cannot be combined with model={model!r}, which has its own"
            )
        return create_network(model, **arguments)
    if model in list_networks():
        other = find_network(model).task
        raise ValueError(f"model={model!r} is a network for {other}, not for {task}")
    if not is_timm_model(model):
        among = f"take a timm name or one of vimamba.list_networks({task!r})"
        raise ValueError(unknown_name("model", model, whole, timm.list_models(), among=among))
    net = create_network(on_backbone, model=model, **{**defaults, **given}, **arguments)
    if is_address(model) and net.config is not None:
        # the files may be gone when it is rebuilt
        name, of_files = read_address(model)
        net.config = {**of_files, **net.config, "model": name}
    return net
