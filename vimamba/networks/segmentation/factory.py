"""One function that makes any segmentation network by name."""

from pathlib import Path
from typing import Any

import timm

from vimamba.checkpoints import CheckpointError
from vimamba.names import unknown_name
from vimamba.networks.loading import load_network
from vimamba.networks.registry import create_network, list_networks
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.sizes import ImageSize
from vimamba.timm_names import is_address, is_timm_model, read_address

# the registered name of a head on a backbone
_ON_BACKBONE = "backbone_segmenter"


def create_segmenter(
    model: str,
    head: str | None = None,
    *,
    num_classes: int,
    in_chans: int = 3,
    pretrained: bool = False,
    img_size: ImageSize | None = None,
    aux: bool = False,
    **model_kwargs: Any,
) -> Segmenter:
    """Make a network that gives every pixel logits, at the image's own size.

    Args:
        model: timm name of a backbone, or a whole network from `list_segmenters()`.
        head: Name from `vimamba.list_heads()`; "upernet" if None. Whole networks have their own.
        num_classes: Channels of the logits; 1 for a binary mask.
        in_chans: Channels of the images; pretrained filters are adapted to them.
        pretrained: Start from published weights: the backbone's, or those that the network's
            authors started from.
        img_size: Side of the images, or their sides, pixels; for networks whose weights depend on
            it.
        aux: Auxiliary outputs for the loss, from `forward_all`: an FCN head on a backbone, deep
            supervision in the networks that have it.
        **model_kwargs: To the backbone or the network.

    Raises:
        ValueError: An unknown name, or an argument that does not fit the model.
    """
    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "pretrained": pretrained,
        "img_size": img_size,
        "aux": aux,
        **model_kwargs,
    }
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    if model in list_segmenters():
        if head is not None:
            raise ValueError(f"head={head!r} does not go with model={model!r}, which has its own")
        net = create_network(model, **arguments)
    elif is_timm_model(model):
        net = create_network(_ON_BACKBONE, model=model, head=head or "upernet", **arguments)
        if is_address(model) and net.config is not None:
            # the files may be gone when it is made again
            name, of_files = read_address(model)
            net.config = {**of_files, **net.config, "model": name}
    else:
        known = [*list_segmenters(), *timm.list_models()]
        among = "take a timm name or one of list_segmenters()"
        raise ValueError(unknown_name("model", model, known, among=among))
    if not isinstance(net, Segmenter):
        raise TypeError(f"model={model!r} makes a {type(net).__name__}, not a Segmenter")
    return net


def list_segmenters() -> list[str]:
    """Names of the whole networks that `vimamba.create_segmenter` knows besides backbones."""
    return [name for name in list_networks("segmentation") if name != _ON_BACKBONE]


def load_segmenter(place: str | Path) -> Segmenter:
    """Load a segmentation network that was saved, in evaluation mode.

    Args:
        place: See `vimamba.load_network`; `export/` of a run is such a folder.

    Raises:
        CheckpointError: As `vimamba.load_network` does, or it is no segmentation network.
    """
    net = load_network(place)
    if not isinstance(net, Segmenter):
        raise CheckpointError(
            f"{str(place)!r} holds a {type(net).__name__}, no segmentation network"
        )
    return net
