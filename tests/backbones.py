"""The small models that stand for their families in tests of every kind."""

from collections.abc import Iterable
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vimamba  # noqa: F401  registers them

TEST_MODELS = [
    name
    for name in timm.list_models("test_*")
    if timm.model_entrypoint(name).__module__.startswith("vimamba.")
]

# a model of tokens and one of stages
KINDS = ["test_vim", "test_vmamba"]


def kinds_first(names: Iterable[str]) -> list[Any]:
    """Names to parametrize a long test with: one model of each kind by default, all if slow."""
    return [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in names]


def any_size(name: str) -> dict[str, Any]:
    """Arguments that make a model take any image size."""
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    return {"dynamic_img_size": True} if fixed else {}


def reductions(name: str, **kwargs: Any) -> list[int]:
    """Strides of a model's maps."""
    model = timm.create_model(name, features_only=True, device="meta", **kwargs)
    return model.feature_info.reduction()


def is_plain(name: str) -> bool:
    """Whether all maps of a model have one stride."""
    return len(set(reductions(name))) == 1


def pyramid(name: str) -> dict[str, Any]:
    """Arguments that give a model any image size and maps of strides 4, 8, 16 and 32."""
    return {**any_size(name), **({"pyramid": (0, 1, 2, 3)} if is_plain(name) else {})}


def pyramids() -> list[str]:
    """Models with maps of strides 4, 8, 16 and 32, which tools for dense tasks ask for."""
    return [name for name in TEST_MODELS if reductions(name, **pyramid(name)) == [4, 8, 16, 32]]


def stirred(model: nn.Module) -> nn.Module:
    """The model, with an output that depends on all its parts, unlike that of one just begun."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
