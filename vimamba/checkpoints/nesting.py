"""Finds the weights in a checkpoint: takes off the dictionaries and prefixes around them."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vimamba.checkpoints.rename import Known, StateDict, listed, without_numbers
from vimamba.reading import CheckpointError, Inert

_logger = logging.getLogger("vimamba.checkpoints")

# Where training code keeps the weights. Of several whole copies the first is taken: Vim's own
# evaluation reads `model` even where an average (`model_ema`) lies beside it.
_NESTING = (
    "model",
    "state_dict",
    "state_dict_ema",
    "model_ema",
    "net",
    "network_weights",
    "model_state_dict",
)
# the copy that a run of ours scores, where it keeps an average of the weights
_SCORED = "average.module."
# what counters of operations (thop) leave in every layer
_COUNTERS = {"total_ops", "total_params"}
# how deep wrappers lie in one another, as mappings and as dotted names
_MOST_WRAPPERS = 6


class Bare(dict[str, Tensor]):
    """Weights out of their wrappers, which are not looked for again."""


@dataclass(frozen=True)
class Weights:
    """What was found in a checkpoint.

    Attributes:
        state: Weights without nesting and wrappers.
        place: Where they lie in the checkpoint.
        others: Where whole copies lie that were not taken.
        foreign: Names of the tensors in the same place that belong to something else.
        beside: Names of those around it.
    """

    state: StateDict
    place: str
    others: tuple[str, ...]
    foreign: tuple[str, ...]
    beside: tuple[str, ...]


def unwrap(checkpoint: Mapping[str, Any], known: Known | None = None) -> StateDict:
    """The weights inside a checkpoint, whatever they are wrapped in.

    Weights are told by their names: those that fit best are taken, without the dictionaries and
    prefixes around them. What lies beside them (losses, optimizers, counters, an average) is left
    out and named in a warning. Of several whole copies that which our runs score is taken, else
    the first; the warning names the others.

    Args:
        checkpoint: As it was read.
        known: Whether a name belongs to the model; None takes the first weights as they are.

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
    """As `unwrap`, with what was left out.

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
    """Every dictionary that holds tensors, with its place; first where weights usually are."""
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
    """How many known names follow each prefix."""
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for depth in range(min(len(parts), _MOST_WRAPPERS)):
            if known(".".join(parts[depth:])):
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    return counts


def thin_out(checkpoint: Mapping[str, Any]) -> dict[str, StateDict]:
    """Every dictionary of tensors, with one of each kind: names that differ by numbers only."""
    sample: dict[str, StateDict] = {}
    for place, state in _holders(checkpoint, (), set()):
        kinds: dict[str, str] = {}
        for key in state:
            kinds.setdefault(without_numbers(key), key)
        sample[".".join(place)] = {key: state[key] for key in kinds.values()}
    return sample
