"""Builds timm models by name, with errors a user can act on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import timm
from timm.models import PretrainedCfg
from torch import nn

from vimamba.names import near_names
from vimamba.networks import find_network, list_networks
from vimamba.tasks.errors import TaskError
from vimamba.timm_names import create_skeleton, is_address, is_timm_model, read_address


def check_name(model: str) -> None:
    """Fail with suggestions, of models and whole networks, if timm does not know the name."""
    if is_timm_model(model):
        return
    networks = list_networks()
    if model in networks:
        from vimamba.tasks.registry import list_tasks  # which imports this module

        task = find_network(model).task
        hint = f"; add --task {task}" if task in list_tasks() else ""
        raise TaskError(f"model={model!r} is a network for {task}{hint}")
    near = near_names(model.split(".")[0], networks, timm.list_models())
    hint = f"; {near}" if near else ""
    own = "register your own with --import MODULE_OR_FILE"
    raise TaskError(f"model={model!r} is unknown{hint} (see `vimamba list-models`; {own})")


def model_cfg(model: str, model_kwargs: Mapping[str, Any] | None = None) -> PretrainedCfg:
    """The published config of a model: input size, mean, standard deviation and so on."""
    check_name(model)
    if not is_address(model):
        try:
            return timm.get_pretrained_cfg(model, allow_unregistered=True) or PretrainedCfg()
        except RuntimeError:
            tags = ", ".join(timm.list_pretrained(f"{model.split('.')[0]}.*")) or "no tag"
            raise TaskError(f"tag of model={model!r} is unknown; choose from {tags}") from None
    with _readable(model):
        net = create_skeleton(model, **dict(model_kwargs or {}))
    found = cast(dict[str, Any], net.pretrained_cfg)
    fields = PretrainedCfg.__dataclass_fields__
    return PretrainedCfg(**{key: value for key, value in found.items() if key in fields})


@contextmanager
def _readable(model: str) -> Iterator[None]:
    """Turn errors in reading an address into one that names it."""
    try:
        yield
    except (AssertionError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise TaskError(f"model={model!r} cannot be read: {error}") from error


def self_contained(
    model: str, model_kwargs: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any] | None]:
    """Name and arguments from which a run rebuilds its model, without the files of an address.

    Args:
        model: Registered name or address.
        model_kwargs: Additional arguments of the model's constructor.
    """
    if not is_address(model):
        return model, None if model_kwargs is None else dict(model_kwargs)
    with _readable(model):
        name, of_files = read_address(model)
    return name, {**of_files, **(model_kwargs or {})}


def refuse_task_arguments(model_kwargs: Mapping[str, Any], task_kwargs: Mapping[str, Any]) -> None:
    """Raise a TaskError if `model_kwargs` contains arguments that the task passes to the model."""
    both = ", ".join(key for key in model_kwargs if key in task_kwargs)
    if both:
        raise TaskError(
            f"model_kwargs={dict(model_kwargs)} must not contain {both}: the options of the task "
            "and of the data set it"
        )


def build_backbone(
    model: str,
    *,
    pretrained: bool,
    img_size: int | tuple[int, ...] | None,
    model_kwargs: Mapping[str, Any] | None,
    **kwargs: Any,
) -> nn.Module:
    """`timm.create_model`, with `img_size` passed to models with a fixed grid.

    Args:
        model: Registered timm name, or an address.
        pretrained: Load the published weights.
        img_size: Side of the input images, or height and width, pixels.
        model_kwargs: Additional arguments of the model's constructor.
        **kwargs: `num_classes`, `in_chans` and similar; None is left out.

    Raises:
        TaskError: Unknown name, argument or weights.
    """
    extra = dict(model_kwargs or {})
    cfg = model_cfg(model, extra)
    if img_size is not None and cfg.fixed_input_size:
        extra.setdefault("img_size", img_size)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    refuse_task_arguments(extra, kwargs)
    try:
        return timm.create_model(model, pretrained=pretrained, **kwargs, **extra)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise TaskError(f"model={model!r} does not take model_kwargs={extra}: {error}") from None
    except (RuntimeError, OSError) as error:
        if not pretrained:
            raise
        raise TaskError(
            f"pretrained weights of {model!r} cannot be loaded: {error}; a local file can be "
            "read with model_kwargs={pretrained_cfg_overlay: {file: PATH}}"
        ) from None
    except ValueError as error:  # from the model's own checks, or a checkpoint that does not fit
        raise TaskError(f"model={model!r}: {error}") from None
