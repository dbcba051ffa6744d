"""EfficientViM (Lee et al. 2024, arXiv:2411.15241), part of timm: reads its official files.

timm registers the models, `efficientvim_m1` to `_m4` and `_dist`, and publishes their weights;
nothing is registered here. tests/models/test_efficientvim.py compares them with the original.

Official code: https://github.com/mlvlab/EfficientViM (MIT)
"""

import re
from collections.abc import Mapping
from typing import Any

import timm
from timm.models.efficientvim import EfficientViM, checkpoint_filter_fn
from torch import nn

from vimamba.checkpoints import (
    CheckpointError,
    Family,
    Identity,
    StateDict,
    check_finite,
    find_weights,
    register_matcher,
)

_FAMILY = Family(
    "EfficientViM",
    EfficientViM,
    rules={},
    top1={
        "efficientvim_m1.e300_in1k": 72.9,
        "efficientvim_m1.e450_in1k": 73.5,
        "efficientvim_m1_dist.in1k": 74.6,
        "efficientvim_m2.e300_in1k": 75.4,
        "efficientvim_m2.e450_in1k": 75.8,
        "efficientvim_m2_dist.in1k": 76.7,
        "efficientvim_m3.e300_in1k": 77.6,
        "efficientvim_m3.e450_in1k": 77.9,
        "efficientvim_m3_dist.in1k": 79.1,
        "efficientvim_m4.e300_in1k": 79.4,
        "efficientvim_m4.e450_in1k": 79.6,
        "efficientvim_m4_dist.in1k": 80.7,
    },
)
_NAMES = re.compile(r"(?:patch_embed|stages|norm|heads|heads_dist)\..+|weights(?:_dist)?")


class EfficientViMIdentity(Identity):
    """Reads files as timm does, which prefers the average of the weights."""

    def read_weights(self, checkpoint: Mapping[str, Any]) -> StateDict:
        """The weights in the file under timm's names, whole and finite.

        Raises:
            CheckpointError: They are not.
        """
        average = checkpoint.get("model_ema")
        state = _find(average if isinstance(average, Mapping) else checkpoint)
        model = self.skeleton()
        renamed = _fit(state, model)
        if renamed is None:
            raise CheckpointError(f"the file does not fit {self.variant}")
        check_finite(renamed)
        return renamed


def _find(checkpoint: Mapping[str, Any]) -> StateDict:
    return find_weights(checkpoint, lambda key: _NAMES.fullmatch(key) is not None).state


def _fit(state: StateDict, model: nn.Module) -> StateDict | None:
    """Weights with the names and shapes of timm's model; None if they belong to another model."""
    if ("weights_dist" in state) != hasattr(model, "weights_dist"):
        return None  # timm would ignore a second classifier
    expected = {key: value.shape for key, value in model.state_dict().items()}
    try:
        renamed = checkpoint_filter_fn(state, model)
    except RuntimeError:  # norms of another width
        return None
    return renamed if {key: value.shape for key, value in renamed.items()} == expected else None


def match_efficientvim(checkpoint: Mapping[str, Any]) -> list[Identity]:
    """The timm model that a checkpoint belongs to."""
    state = _find(checkpoint)
    stem, head = (state.get(f"{name}.weight") for name in ("patch_embed.conv.0.conv", "heads.0"))
    if "weights" not in state or stem is None or stem.ndim != 4 or head is None:
        return []
    sizes: dict[str, Any] = {"in_chans": stem.shape[1], "num_classes": head.shape[0]}
    for name in timm.list_models(module="efficientvim"):
        if _fit(state, timm.create_model(name, device="meta", **sizes)) is not None:
            found: Identity = EfficientViMIdentity(
                variant=name,
                family=_FAMILY.name,
                notes="timm's own model",
                accuracy=_FAMILY.describe_accuracy(name),
                license="mit",
                **sizes,
            )
            return [found]
    return []


register_matcher(match_efficientvim)
