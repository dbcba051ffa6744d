"""Compatibility with all timm versions that `pyproject.toml` allows, in one place.

timm before 1.0.23 creates layers on the default device, in the default dtype, and does not record a
model's input size. nnU-Net 2.8 needs such a version.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from timm import layers
from torch import nn


def _get_device_dtype(module: nn.Module, device: Any = None, dtype: Any = None) -> dict[str, Any]:
    """Device and dtype for a new layer of a module: as given, or its first parameter's."""
    first = next(module.parameters(), None)
    if first is not None:
        device, dtype = device or first.device, dtype or first.dtype
    return {"device": device, "dtype": dtype}


def _update_model_input_size(model: nn.Module, img_size: tuple[int, int]) -> None:
    """Does nothing: there is no record to update."""


try:
    from timm.layers.helpers import get_device_dtype
except ImportError:
    get_device_dtype = _get_device_dtype

try:
    from timm.models._input import update_model_input_size
except ImportError:
    update_model_input_size = _update_model_input_size


if TYPE_CHECKING:
    from timm.layers import (
        Attention,
        ClassifierHead,
        ConvNormAct,
        LayerScale,
        LayerScale2d,
        Mlp,
        SqueezeExcite,
        SwiGLU,
    )
else:

    def _placed(layer: type[nn.Module]) -> type[nn.Module]:
        """A timm layer that takes `device` and `dtype`, for versions whose layers do not."""
        if "device" in layer.__init__.__code__.co_varnames:
            return layer

        def construct(
            self: nn.Module, *args: Any, device: Any = None, dtype: Any = None, **kwargs: Any
        ) -> None:
            with nullcontext() if device is None else torch.device(device):
                layer.__init__(self, *args, **kwargs)
            self.to(device=device, dtype=dtype)

        members = {"__init__": construct, "__module__": __name__, "__doc__": layer.__doc__}
        return type(layer.__name__, (layer,), members)

    def _resettable(layer: type[nn.Module]) -> type[nn.Module]:
        """A layer scale that can be reinitialized, which models from the meta device need."""
        if hasattr(layer, "reset_parameters"):
            return layer

        def construct(self: nn.Module, dim: int, init_values: float = 1e-5, **kwargs: Any) -> None:
            layer.__init__(self, dim, init_values, **kwargs)
            self.init_values = init_values

        def reset_parameters(self: nn.Module) -> None:
            nn.init.constant_(self.gamma, self.init_values)

        members = {"__init__": construct, "reset_parameters": reset_parameters}
        return type(layer.__name__, (layer,), {**members, "__module__": __name__})

    Attention = _placed(layers.Attention)
    ClassifierHead = _placed(layers.ClassifierHead)
    ConvNormAct = _placed(layers.ConvNormAct)
    LayerScale = _resettable(_placed(layers.LayerScale))
    LayerScale2d = _resettable(_placed(layers.LayerScale2d))
    Mlp = _placed(layers.Mlp)
    SqueezeExcite = _placed(layers.SqueezeExcite)
    SwiGLU = _placed(layers.SwiGLU)

    if ClassifierHead is not layers.ClassifierHead:

        class ClassifierHead(ClassifierHead):
            """timm's class, which can also be reset to another number of features."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.num_features = self.in_features * self.global_pool.feat_mult()

            def reset(
                self,
                num_classes: int,
                pool_type: str | None = None,
                reset_other: bool = False,
                in_features: int | None = None,
                device: Any = None,
                dtype: Any = None,
            ) -> None:
                """Replace the classifier, and optionally the pooling."""
                dd = get_device_dtype(self, device, dtype)
                self.in_features = in_features or self.in_features
                super().reset(num_classes, pool_type)
                self.to(**dd).train(self.training)
                self.num_features = self.in_features * self.global_pool.feat_mult()


__all__ = [
    "Attention",
    "ClassifierHead",
    "ConvNormAct",
    "LayerScale",
    "LayerScale2d",
    "Mlp",
    "SqueezeExcite",
    "SwiGLU",
    "get_device_dtype",
    "update_model_input_size",
]
