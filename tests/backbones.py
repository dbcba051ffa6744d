"""The small models that stand for their families in tests of every kind."""

import inspect
from collections.abc import Iterable
from typing import Any

import pytest
import timm
from torch import nn

from vimamba.layers import SS2D, SSD2D, MambaMixer
from vimamba.models._plain import PlainBackbone

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


def is_plain(name: str) -> bool:
    """Whether a model is one of tokens."""
    return isinstance(timm.create_model(name, device="meta"), PlainBackbone)


def strides(name: str) -> list[int]:
    """Strides of all maps of a model."""
    return timm.create_model(name, features_only=True, device="meta").feature_info.reduction()


def takes(name: str, argument: str) -> bool:
    """Whether the class of a model has an argument."""
    model = timm.create_model(name, device="meta")
    return argument in inspect.signature(type(model)).parameters


def pyramid(name: str) -> dict[str, Any]:
    """Arguments that give a model any image size and maps of strides 4, 8, 16 and 32."""
    blocks = {"pyramid": (0, 1, 2, 3)} if takes(name, "pyramid") else {}
    return {**any_size(name), **blocks}


# those that can give maps of four strides
MULTISCALE = [n for n in TEST_MODELS if len({*strides(n)}) == 4 or takes(n, "pyramid")]


def mixers(model: nn.Module) -> list[nn.Module]:
    """The mixers that families share."""
    return [m for m in model.modules() if isinstance(m, SS2D | SSD2D | MambaMixer)]
