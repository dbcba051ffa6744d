"""The small models that represent their families in tests."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import nn

from vimamba.layers import SS2D, SSD2D, MambaMixer
from vimamba.models._plain import PlainBackbone

TEST_MODELS = [
    name
    for name in timm.list_models("test_*")
    if timm.model_entrypoint(name).__module__.startswith("vimamba.")
]


# a plain model and a staged one
KINDS = ["test_vim", "test_vmamba"]


def kinds_first(names: Iterable[str]) -> list[Any]:
    """Names to parametrize a long test with: one model of each kind by default, the others slow."""
    return [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in names]


def any_size(name: str) -> dict[str, Any]:
    """Arguments that make a model take any image size."""
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    return {"dynamic_img_size": True} if fixed else {}


@cache
def outline(name: str) -> nn.Module:
    """A model without memory for its weights."""
    return timm.create_model(name, device="meta")


def is_plain(name: str) -> bool:
    """Whether a model is plain."""
    return isinstance(outline(name), PlainBackbone)


def strides(name: str) -> list[int]:
    """Strides of all maps of a model."""
    return [info["reduction"] for info in outline(name).feature_info]


def has_argument(name: str, argument: str) -> bool:
    """Whether the models of a family have an argument that not all models have."""
    return argument in type(outline(name)).arguments()


def pyramid(name: str) -> dict[str, Any]:
    """Arguments that give a model any image size and maps of strides 4, 8, 16 and 32."""
    return {
        **any_size(name),
        **({"pyramid": (0, 1, 2, 3)} if has_argument(name, "pyramid") else {}),
    }


# those that can give maps of four strides
MULTISCALE = [n for n in TEST_MODELS if len({*strides(n)}) == 4 or has_argument(n, "pyramid")]


def stirred(model: nn.Module) -> nn.Module:
    """The model with random weights, so that the output depends on all its parts."""
    torch.manual_seed(0)  # independent of the random numbers used to build the model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def takes_scan_order(name: str) -> bool:
    """Whether the scans of a model can follow another order."""
    return has_argument(name, "scan_order")


def mixers(model: nn.Module) -> list[nn.Module]:
    """The mixers that families share."""
    return [m for m in model.modules() if isinstance(m, SS2D | SSD2D | MambaMixer)]
