"""One function that creates any segmentation network by name."""

from pathlib import Path
from typing import Any

from vimamba.checkpoints import CheckpointError
from vimamba.networks.dense import create_dense, list_whole
from vimamba.networks.loading import load_network
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.sizes import ImageSize

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
    """Create a network that predicts logits for every pixel, at the image's own size.

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
        **model_kwargs: Arguments of the backbone or the network.

    Raises:
        ValueError: An unknown name, or an argument that does not fit the model.
    """
    net = create_dense(
        model,
        task="segmentation",
        on_backbone=_ON_BACKBONE,
        parts={"head": head},
        defaults={"head": "upernet"},
        arguments={
            "num_classes": num_classes,
            "in_chans": in_chans,
            "pretrained": pretrained,
            "img_size": img_size,
            "aux": aux,
            **model_kwargs,
        },
    )
    if not isinstance(net, Segmenter):
        raise TypeError(f"model={model!r} makes a {type(net).__name__}, not a Segmenter")
    return net


def list_segmenters() -> list[str]:
    """Names of the whole networks for `vimamba.create_segmenter`."""
    return list_whole("segmentation", _ON_BACKBONE)


def load_segmenter(place: str | Path) -> Segmenter:
    """Load a saved segmentation network, in evaluation mode.

    Args:
        place: See `vimamba.load_network`; `export/` of a run is such a folder.

    Raises:
        CheckpointError: As in `vimamba.load_network`, or it is not a segmentation network.
    """
    net = load_network(place)
    if not isinstance(net, Segmenter):
        raise CheckpointError(
            f"{str(place)!r} holds a {type(net).__name__}, not a segmentation network"
        )
    return net
