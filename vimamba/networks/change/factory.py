"""One function that creates any change-detection network by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimamba.checkpoints import CheckpointError
from vimamba.networks.change.detector import ChangeDetector
from vimamba.networks.dense import create_dense, list_whole
from vimamba.networks.loading import load_network

# the registered name of a head on a backbone
_ON_BACKBONE = "backbone_change_detector"


def create_change_detector(
    model: str,
    head: str | None = None,
    *,
    num_classes: int,
    fusion: str | None = None,
    fusion_kwargs: Mapping[str, Any] | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    img_size: int | None = None,
    **model_kwargs: Any,
) -> ChangeDetector:
    """Create a network that compares two images of one place, pixel by pixel.

    It takes `(before, after)`, each (N, C, H, W), or both in one tensor (N, 2, C, H, W), and
    returns logits (N, num_classes, H, W) of change; networks for semantic change and for damage
    return `vimamba.networks.SemanticLogits` and `DamageLogits`.

    Args:
        model: timm name of a backbone, or a whole network from `list_change_detectors()`.
        head: Name from `vimamba.list_heads()`; "upernet" if None. Whole networks have their own.
        num_classes: Channels of the change logits, 1 for a binary mask; for semantic change the
            classes of either date, for damage its levels.
        fusion: How the two dates are joined, a name from `vimamba.list_fusions()`; "difference" if
            None. Whole networks have their own.
        fusion_kwargs: Arguments of the fusion, for "change_mamba" for example
            `{"arrangements": ["sequential"], "scan_order": "hilbert"}`.
        in_chans: Channels of the images; pretrained filters are adapted to them.
        pretrained: Start from published weights: the backbone's, or those that the network's
            authors started from.
        img_size: Side of the images, pixels; for networks whose weights depend on it.
        **model_kwargs: Arguments of the backbone or the network.

    Raises:
        ValueError: An unknown name, or an argument that does not fit the model.
    """
    net = create_dense(
        model,
        task="change",
        on_backbone=_ON_BACKBONE,
        parts={"head": head, "fusion": fusion, "fusion_kwargs": fusion_kwargs},
        defaults={"head": "upernet", "fusion": "difference"},
        arguments={
            "num_classes": num_classes,
            "in_chans": in_chans,
            "pretrained": pretrained,
            "img_size": img_size,
            **model_kwargs,
        },
    )
    if not isinstance(net, ChangeDetector):
        raise TypeError(f"model={model!r} makes a {type(net).__name__}, not a ChangeDetector")
    return net


def list_change_detectors() -> list[str]:
    """Names of the whole networks for `vimamba.create_change_detector`."""
    return list_whole("change", _ON_BACKBONE)


def load_change_detector(place: str | Path) -> ChangeDetector:
    """Load a saved change-detection network, in evaluation mode.

    Args:
        place: See `vimamba.load_network`; `export/` of a run is such a folder.

    Raises:
        CheckpointError: As in `vimamba.load_network`, or it is not a change-detection network.
    """
    net = load_network(place)
    if not isinstance(net, ChangeDetector):
        raise CheckpointError(
            f"{str(place)!r} holds a {type(net).__name__}, not a network for change"
        )
    return net
