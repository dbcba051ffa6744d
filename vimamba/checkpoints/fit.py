"""Checks that weights fit a model completely, shape by shape."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vimamba.checkpoints.rename import StateDict, listed
from vimamba.reading import CheckpointError

_logger = logging.getLogger("vimamba.checkpoints")


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Fail on weights that are not finite.

    Raises:
        CheckpointError: NaN or infinite values; the message names the first tensors and counts all.
    """
    broken = [key for key, value in state.items() if not _is_finite(value)]
    if broken:
        raise CheckpointError(
            f"weights are not finite (NaN or infinite) in {listed('tensor', broken)}; "
            f"of {len(state)} tensors"
        )


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return True
    if value.itemsize == 1:  # torch has no isfinite for 8-bit dtypes
        value = value.float()
    return bool(value.isfinite().all())


def classifiers(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classifier layers in a pretrained config; a distilled model has two."""
    names = cfg["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def check_fit(state: StateDict, model: nn.Module, *, fresh: tuple[str, ...] = ()) -> StateDict:
    """Return `state` if it fits `model` in all names and shapes.

    Differences that timm adapts are allowed: the size of the classifier, the number of input
    channels.

    Args:
        state: Weights under our names.
        model: A model with a `pretrained_cfg`.
        fresh: Prefixes of parameters that may be missing; a warning names them.

    Raises:
        CheckpointError: Lists missing and unexpected keys and wrong shapes.
    """
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    expected = model.state_dict()
    names = classifiers(cfg)
    classifier = {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
    head = state.get(f"{names[0]}.weight")
    num_classes = cfg["num_classes"] if head is None else head.shape[0]
    adapted = classifier if num_classes != model.num_classes else set()
    if adapted and model.num_classes and num_classes != cfg["num_classes"]:
        _logger.warning(
            "The file's classifier of %d classes is left out: the model has num_classes=%d and "
            "starts a new one",
            num_classes,
            model.num_classes,
        )

    def same_shape(key: str) -> bool:
        ours, theirs = expected[key].shape, state[key].shape
        if key == f"{cfg['first_conv']}.weight" and theirs[1:2] == cfg["input_size"][:1]:
            ours, theirs = ours[:1] + ours[2:], theirs[:1] + theirs[2:]
        if key in adapted:
            ours, theirs = ours[1:], theirs[1:]
        return ours == theirs

    def same_kind(key: str) -> bool:
        real = expected[key].is_floating_point()
        return state[key].is_floating_point() or not (real or state[key].is_complex())

    missing = [k for k in expected if k not in state and k not in adapted]
    started = [k for k in missing if k.startswith(fresh)] if fresh else []
    missing = [k for k in missing if k not in started]
    unexpected = [k for k in state if k not in expected and k not in adapted]
    shared = [k for k in state if k in expected]
    reshaped = [
        f"{k} {tuple(state[k].shape)}, not {tuple(expected[k].shape)}"
        for k in shared
        if not same_shape(k)
    ]
    unlike = [f"{k} {state[k].dtype}" for k in shared if not same_kind(k)]
    if missing or unexpected or reshaped or unlike:
        problems = {
            "missing key": missing,
            "unexpected key": unexpected,
            "key of another shape": reshaped,
            "key of another kind of numbers": unlike,
        }
        raise CheckpointError("; ".join(listed(w, k) for w, k in problems.items() if k))
    if started:
        _logger.warning("The checkpoint has none of these, they start fresh: %s", started)
    return state
