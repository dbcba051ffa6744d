"""Finds the weights in a checkpoint: removes the dictionaries and prefixes around them."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vimamba.checkpoints.rename import Known, StateDict, listed, without_numbers
from vimamba.reading import CheckpointError, Inert

_logger = logging.getLogger("vimamba.checkpoints")

# Where training code stores the weights. Of several complete copies the first is used: Vim's own
# evaluation reads `model` even if there is an average (`model_ema`).
_NESTING = (
    "model",
    "state_dict",
    "state_dict_ema",
    "model_ema",
    "net",
    "network_weights",
    "model_state_dict",
)
# the copy that our runs score, if they keep an average of the weights
_SCORED = "average.module."
# entries that operation counters (thop) leave in every layer
_COUNTERS = {"total_ops", "total_params"}
# maximum nesting of wrappers, as mappings and as dotted names
_MOST_WRAPPERS = 6


class Bare(dict[str, Tensor]):
    """Unwrapped weights, which need no further search."""


@dataclass(frozen=True)
class Weights:
    """Weights found in a checkpoint.

    Attributes:
        state: Weights without nesting and wrappers.
        place: Their location in the checkpoint.
        others: Locations of complete copies that were not used.
        foreign: Names of other tensors at the same location.
        beside: Names of tensors next to it.
    """

    state: StateDict
    place: str
    others: tuple[str, ...]
    foreign: tuple[str, ...]
    beside: tuple[str, ...]


def unwrap(checkpoint: Mapping[str, Any], known: Known | None = None) -> StateDict:
    """The weights in a checkpoint, whatever they are wrapped in.

    Weights are recognized by their names: the best match is used, without the dictionaries and
    prefixes around it. Other entries (losses, optimizers, counters, an average) are skipped and
    listed in a warning. Of several complete copies, the one that our runs score is used, else the
    first; the warning names the others.

    Args:
        checkpoint: The checkpoint as read.
        known: Whether a name belongs to the model; None accepts the first weights.

    Raises:
        CheckpointError: There are no tensors in it.
    """
    if isinstance(checkpoint, Bare):
        return checkpoint
    found = find_weights(checkpoint, known)
    if found.others:
        others = ", ".join(found.others)
        _logger.warning("The weights at %s are taken, not those at %s", found.place, others)
    if found.beside or found.foreign:
        ends = (key.split(".") for key in (*found.beside, *found.foreign))
        parts = list(dict.fromkeys(e[-1] if e[-1] in _COUNTERS else e[0] for e in ends))
        _logger.warning("Left out, as it is nothing of the model: %s", listed("part", parts))
    return found.state


def find_weights(checkpoint: Mapping[str, Any], known: Known | None = None) -> Weights:
    """As `unwrap`, with the skipped entries.

    Raises:
        CheckpointError: There are no tensors in it.
    """
    holders = list(_holders(checkpoint, (), set()))
    if not holders:
        raise CheckpointError(f"no weights among the entries {sorted(map(str, checkpoint))[:8]}")
    if known is None:
        place, state = holders[0]
        return Weights(state, ".".join(place), (), (), ())
    copies = [
        (count, prefix, place, state)
        for place, state in holders
        for prefix, count in _count_prefixes(state, known).items()
    ]
    most = max((count for count, *_ in copies), default=0)
    whole = [copy for copy in copies if copy[0] == most]
    if not whole:
        return find_weights(checkpoint)
    whole.sort(key=lambda copy: copy[1] != _SCORED)
    labels = [f"{'.'.join((*place, prefix)) or 'the top'!r}" for _, prefix, place, _ in whole]
    _, prefix, _, holder = whole[0]
    state = {k.removeprefix(prefix): v for k, v in holder.items() if k.startswith(prefix)}
    roots = {key.split(".")[0] for key in state if known(key)}
    foreign = [
        key
        for key in state
        if key.rsplit(".", 1)[-1] in _COUNTERS or key.split(".")[0] not in roots
    ]
    taken = tuple(prefix for _, prefix, _, state in whole if state is holder)
    beside = [key for key in holder if not key.startswith(taken)]
    kept = {key: value for key, value in state.items() if key not in set(foreign)}
    return Weights(kept, labels[0], tuple(labels[1:]), tuple(foreign), tuple(beside))


def _holders(
    content: Mapping[str, Any], place: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """Every dictionary with tensors, with its location; usual locations first."""
    if id(content) in seen or len(place) > _MOST_WRAPPERS:
        return
    seen.add(id(content))
    nested = [k for k, v in content.items() if isinstance(v, Mapping) and not isinstance(v, Inert)]
    usual = [key for key in _NESTING if key in nested]
    own = {k: v for k, v in content.items() if isinstance(v, Tensor) and isinstance(k, str)}
    for key in usual:
        yield from _holders(content[key], (*place, key), seen)
    if own:
        yield place, own
    for key in nested:
        if key not in usual:
            yield from _holders(content[key], (*place, str(key)), seen)


def _count_prefixes(state: StateDict, known: Known) -> Counter[str]:
    """Number of known names after each prefix."""
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for depth in range(min(len(parts), _MOST_WRAPPERS)):
            if known(".".join(parts[depth:])):
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    return counts


def thin_out(checkpoint: Mapping[str, Any]) -> dict[str, StateDict]:
    """Every dictionary of tensors, keeping one of the names that differ only by numbers."""
    sample: dict[str, StateDict] = {}
    for place, state in _holders(checkpoint, (), set()):
        kinds: dict[str, str] = {}
        for key in state:
            kinds.setdefault(without_numbers(key), key)
        sample[".".join(place)] = {key: state[key] for key in kinds.values()}
    return sample
