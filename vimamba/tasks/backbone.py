"""Builds timm models by name, with errors a user can act on."""

import difflib
from collections.abc import Mapping
from typing import Any, cast

import timm
from timm.models import PretrainedCfg
from torch import nn

from vimamba.tasks.errors import TaskError


def is_address(model: str) -> bool:
    """Whether a name points to files (`local-dir:`, `hf-hub:`) instead of the registry."""
    return ":" in model


def is_timm_model(model: str) -> bool:
    """Whether timm can build a model of that name."""
    return is_address(model) or timm.is_model(model)


def check_name(model: str) -> None:
    """Fail with suggestions if timm does not know the name."""
    if is_timm_model(model):
        return
    known = timm.list_models()
    near = difflib.get_close_matches(model.split(".")[0], known, n=4, cutoff=0.5)
    hint = f"; close names are {', '.join(near)}" if near else ""
    raise TaskError(f"model={model!r} is unknown{hint} (see `vimamba list-models`)")


def model_cfg(model: str, model_kwargs: Mapping[str, Any] | None = None) -> PretrainedCfg:
    """What is published with a model: input size, mean, standard deviation and so on."""
    check_name(model)
    if not is_address(model):
        try:
            return timm.get_pretrained_cfg(model, allow_unregistered=True) or PretrainedCfg()
        except RuntimeError:
            tags = ", ".join(timm.list_pretrained(f"{model.split('.')[0]}.*")) or "no tag"
            raise TaskError(f"tag of model={model!r} is unknown; choose from {tags}") from None
    net = timm.create_model(model, device="meta", **dict(model_kwargs or {}))
    found = cast(dict[str, Any], net.pretrained_cfg)
    fields = PretrainedCfg.__dataclass_fields__
    return PretrainedCfg(**{key: value for key, value in found.items() if key in fields})


def build_backbone(
    model: str,
    *,
    pretrained: bool,
    img_size: int | None,
    model_kwargs: Mapping[str, Any] | None,
    **kwargs: Any,
) -> nn.Module:
    """`timm.create_model`, with `img_size` handed on to the models that have a fixed grid.

    Args:
        model: Registered timm name, or an address.
        pretrained: Load the published weights.
        img_size: Side of the images to come, pixels.
        model_kwargs: Further arguments of the model's constructor.
        **kwargs: `num_classes`, `in_chans` and the like; None is left out.

    Raises:
        TaskError: Unknown name, argument or weights.
    """
    extra = dict(model_kwargs or {})
    cfg = model_cfg(model, extra)
    if img_size is not None and cfg.fixed_input_size:
        extra.setdefault("img_size", img_size)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    try:
        return timm.create_model(model, pretrained=pretrained, **kwargs, **extra)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise TaskError(f"model={model!r} does not take model_kwargs={extra}: {error}") from None
    except ValueError as error:  # of the model's own checks, or a checkpoint that does not fit
        raise TaskError(f"model={model!r}: {error}") from None
    except (RuntimeError, OSError) as error:
        if not pretrained:
            raise
        raise TaskError(
            f"pretrained weights of {model!r} cannot be loaded: {error}; a file that is at hand is "
            "read with model_kwargs={pretrained_cfg_overlay: {file: PATH}}"
        ) from None
