"""Models by the names that timm accepts: registered ones, and addresses of files."""

from typing import Any

import timm
from timm.models import load_model_config_from_hf, parse_model_name
from timm.models._hub import load_model_config_from_path
from torch import nn


def is_address(model: str) -> bool:
    """Whether a name points to files (`local-dir:`, `hf-hub:`) instead of the registry."""
    return ":" in model


def is_timm_model(model: str) -> bool:
    """Whether timm can build a model of that name."""
    return is_address(model) or timm.is_model(model)


def read_address(model: str) -> tuple[str, dict[str, Any]]:
    """Registered name and arguments of the model that an address points to.

    Without `num_classes`, `in_chans` and `img_size`, which the caller decides.
    """
    source, place = parse_model_name(model)
    read = load_model_config_from_hf if source == "hf-hub" else load_model_config_from_path
    _, name, arguments = read(place)
    decided = {"num_classes", "in_chans", "img_size"}
    return name, {key: value for key, value in (arguments or {}).items() if key not in decided}


def create_skeleton(name: str, **kwargs: Any) -> nn.Module:
    """A model on the meta device, if its constructor takes a device.

    Args:
        name: As for `timm.create_model`.
        **kwargs: Arguments of the model.
    """
    try:
        return timm.create_model(name, device="meta", **kwargs)
    except TypeError:
        return timm.create_model(name, **kwargs)
