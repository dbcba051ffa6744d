"""One function that makes any segmentation network by name."""

import difflib
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_model

from vimamba.checkpoints import CheckpointError, check_finite, read_checkpoint
from vimamba.networks.backbone import BackboneSegmenter
from vimamba.networks.registry import find_segmenter, list_segmenters
from vimamba.networks.segmenter import Segmenter
from vimamba.reading import read_json


def create_segmenter(
    model: str,
    head: str | None = None,
    *,
    num_classes: int,
    in_chans: int = 3,
    pretrained: bool = False,
    img_size: int | None = None,
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
        img_size: Side of the images, pixels; for networks whose weights depend on it.
        aux: Auxiliary outputs for the loss, from `forward_all`: an FCN head on a backbone, deep
            supervision in the networks that have it.
        **model_kwargs: To the backbone or the network.

    Raises:
        ValueError: An unknown name, or an argument that does not fit the model.
    """
    shared: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "pretrained": pretrained,
        "img_size": img_size,
        "aux": aux,
    }
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    build = find_segmenter(model)
    if build is not None:
        if head is not None:
            raise ValueError(f"head={head!r} does not go with model={model!r}, which has its own")
        return build(**shared, **model_kwargs)
    if ":" not in model and not timm.is_model(model):
        known = [*list_segmenters(), *timm.list_models()]
        near = difflib.get_close_matches(model.split(".")[0], known, n=4, cutoff=0.5)
        hint = f"close names are {', '.join(near)}" if near else "a timm name or list_segmenters()"
        own = "; one of your own is made known with --import, or by importing it"
        raise ValueError(f"model={model!r} is unknown; {hint}{own}")
    return BackboneSegmenter(model, head or "upernet", **shared, **model_kwargs)


def load_segmenter(folder: str | Path) -> Segmenter:
    """Load a network that a training exported, in evaluation mode.

    Args:
        folder: `export/` of a run; its config.json also has the names of the classes and how
            pixels become the network's input.

    Raises:
        CheckpointError: The folder holds no such network, or one whose weights do not fit or are
            not finite.
    """
    config, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    settings = read_json(config, CheckpointError) if config.is_file() else {}
    network = settings.get("network")
    if not isinstance(network, dict) or not weights.is_file():
        raise CheckpointError(f"folder={str(folder)!r} is no export of a segmentation network")
    # what somebody wrote builds a network here, and reads or fetches nothing else
    elsewhere = [key for key in ("pretrained_cfg", "checkpoint_path") if key in network]
    if elsewhere or ":" in str(network.get("model")):
        named = elsewhere[0] if elsewhere else f"model={network['model']!r}"
        raise CheckpointError(f"{config}: {named} names files outside the folder")
    state: Any = read_checkpoint(weights)
    try:
        check_finite(state)
        net = create_segmenter(**{**network, "pretrained": False})
        load_model(net, weights)
    # values that no network can be built from
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"folder={str(folder)!r}: {text}") from error
    return net.eval()
