"""What every family's entry points do with timm's builder."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from timm.models import build_model_with_cfg
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from vimamba.checkpoints import FilterFn, StateDict, check_finite

ModelT = TypeVar("ModelT", bound=nn.Module)


class FeatureMaps(FeatureGetterNet):
    """timm's extractor of feature maps, which compiles as TorchScript, too.

    The model's `forward_maps(x, indices, norm)` gives a script its maps (N, C, H, W).
    """

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.out_indices = list(self.out_indices)  # type: ignore[arg-type]
        self.is_nchw = self.output_fmt == "NCHW"

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C_in, H, W) to the maps of the chosen indices."""
        if torch.jit.is_scripting():
            assert self.is_nchw, "output_fmt must be NCHW in TorchScript"
            return self.model.forward_maps(x, self.out_indices, self.norm)  # type: ignore[operator]
        else:
            return super().forward(x)


def build_model(
    model_cls: type[ModelT],
    variant: str,
    pretrained: bool,
    *,
    filter_fn: FilterFn,
    features: Sequence[int],
    **kwargs: Any,
) -> ModelT:
    """Build a registered model, and with `features_only` the extractor of its feature maps.

    A file or address that the user gives is read by the model's own `load_pretrained`, which is
    strict and runs no code of the file.

    Args:
        model_cls: The family's class.
        variant: Registered name.
        pretrained: Load the weights of the pretrained config.
        filter_fn: Adapts official weights.
        features: Indices for `features_only` where the user gives no `out_indices`.
        **kwargs: The model's arguments and those of timm's `create_model`.
    """
    if kwargs.get("features_only"):
        kwargs.setdefault("num_classes", 0)  # so that a file without a classifier loads, too
        if kwargs.get("feature_cls", "getter") == "getter":
            kwargs["feature_cls"] = FeatureMaps
    if overlay := kwargs.get("pretrained_cfg_overlay"):
        kwargs["pretrained_cfg_overlay"] = {"custom_load": "hf", **overlay}

    def adapt(state_dict: Mapping[str, Any], model: nn.Module) -> StateDict:
        state = filter_fn(state_dict, model)
        check_finite(state)
        return state

    return build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_filter_fn=adapt,
        # maps in NCHW, whatever the model computes in
        feature_cfg={"out_indices": tuple(features)},
        **kwargs,
    )
