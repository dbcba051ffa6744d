"""Names that timm accepts for models: registered ones, and addresses of files."""

from typing import Any

import timm
from timm.models import load_model_config_from_hf, parse_model_name
from timm.models._hub import load_model_config_from_path


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
