"""Identifies checkpoints of whole networks, for `vimamba.identify`.

The network is identified by names, like models. The numbers of classes and channels are read from
the shapes in the file that depend on them.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.checkpoints import CheckpointError, Identity, find_weights, register_matcher, thin_out
from vimamba.networks.network import Network
from vimamba.networks.registry import Entry, create_network, find_network, list_networks

# arguments inferred from a file, with two values at which to compare the network's shapes
_SIZES = {"num_classes": (5, 7), "in_chans": (3, 6)}
# the same for networks of other tasks than segmentation
_SIZES_OF_TASK = {"registration": ("in_chans",)}


@dataclass(frozen=True)
class NetworkIdentity(Identity):
    """Identity of a whole network's checkpoint; `arguments` are all of its arguments."""

    @property
    def all_arguments(self) -> dict[str, Any]:
        """All arguments of the network."""
        return dict(self.arguments)

    @property
    def create_line(self) -> str:
        """The line of code that builds the matching network and loads the file."""
        arguments = [f"{key}={value!r}" for key, value in self.arguments]
        call = ", ".join([f'"{self.variant}"', *arguments])
        return f"network = vimamba.create_network({call}); network.load_pretrained(FILE)"

    def folder_line(self, folder: str | Path) -> str:
        """The line of code that loads a folder from `vimamba.save_pretrained`."""
        return f'vimamba.load_network("{folder}")'

    def load(self, file: str | Path) -> nn.Module:
        """Build the network and load the file, as in `create_line`."""
        network = create_network(self.variant, **self.all_arguments)
        network.load_pretrained(file)
        return network

    def skeleton(self) -> nn.Module:
        """The network on the meta device."""
        return _outline(find_network(self.variant), self.arguments)


def match_networks(checkpoint: Mapping[str, Any]) -> list[Identity]:
    """The networks that a checkpoint fits, with its number of classes and channels."""
    sample = thin_out(checkpoint)
    entries = [find_network(name) for name in list_networks()]
    likely = [e for e in entries if e.network_cls and _has_names(sample, e.network_cls)]
    found = [(entry, fit) for entry in likely if (fit := _fit(checkpoint, entry)) is not None]
    # of networks that differ in nothing else, the one with these default sizes comes first
    return [fit for _, fit in sorted(found, key=lambda pair: -_count_own_sizes(*pair))]


def _count_own_sizes(entry: Entry, found: NetworkIdentity) -> int:
    """Number of sizes in a file that equal the network's defaults."""
    takes = inspect.signature(entry.build).parameters
    return sum(key in takes and takes[key].default == size for key, size in found.arguments)


def _has_names(sample: Mapping[str, Any], network_cls: type[Network]) -> bool:
    """Whether most names are official, or the network's parts occur among our names."""
    rules = network_cls.official_rules()
    patterns = [re.compile(pattern) for pattern in rules]
    found = find_weights(sample, lambda key: any(p.fullmatch(key) for p in patterns))
    known = sum(any(p.fullmatch(key) for p in patterns) for key in found.state)
    if 2 * known > len(found.state) + len(found.foreign) + len(found.beside):
        return True
    # our parts are the first words of replacements: "decoder" in r"decoder.\1.upsample.\2"
    firsts = (re.match(r"(\w+)\.", new) for new in rules.values() if isinstance(new, str))
    parts = {first[1] for first in firsts if first}
    present = {part for state in sample.values() for key in state for part in key.split(".")}
    return 2 * len(parts & present) > len(parts)


def _fit(checkpoint: Mapping[str, Any], entry: Entry) -> NetworkIdentity | None:
    """Identity of the file if it fits a network with the inferred sizes."""
    sizes = _sizes_of(entry)
    usual = _outline(entry, _usual(sizes))
    try:
        state = usual.rename_weights(checkpoint)
        expected = {key: value.ndim for key, value in usual.state_dict().items()}
        if {key: value.ndim for key, value in state.items()} != expected:
            return None
        arguments = tuple((size, _read_size(state, entry, size)) for size in sizes)
        network = _outline(entry, arguments)
        network.read_weights(checkpoint)
    except CheckpointError:
        return None
    cfg = network.pretrained_cfg
    return NetworkIdentity(
        variant=entry.name,
        family=f"whole network, {entry.task}",
        notes="",
        accuracy="",
        license=cfg.get("license") or "unstated",
        arguments=arguments,
        in_chans=network.in_chans,
        num_classes=network.num_classes,
    )


def _read_size(state: Mapping[str, Tensor], entry: Entry, size: str) -> int:
    """Infer a size from the shapes of weights that depend on it.

    Raises:
        CheckpointError: None of these weights exist, or their sizes disagree.
    """
    places = [place for place in _places(entry, size) if place[0] in state]
    found = {
        state[key].shape[axis] // times for key, axis, times in places if axis < state[key].ndim
    }
    if len(found) != 1:
        raise CheckpointError(f"{size} cannot be inferred from the weights")
    return found.pop()


@lru_cache
def _places(entry: Entry, size: str) -> tuple[tuple[str, int, int], ...]:
    """Names and axes of shapes proportional to an argument, with the factor."""
    few, many = _SIZES[size]
    sizes = _sizes_of(entry)
    outlines = (_outline(entry, _usual({**sizes, size: (n, n)})) for n in (few, many))
    ours, theirs = (network.state_dict() for network in outlines)
    return tuple(
        (key, axis, length // few)
        for key, value in ours.items()
        for axis, length in enumerate(value.shape)
        if length % few == 0 and theirs[key].shape[axis] == length // few * many
    )


def _sizes_of(entry: Entry) -> dict[str, tuple[int, int]]:
    return {size: _SIZES[size] for size in _SIZES_OF_TASK.get(entry.task, _SIZES)}


def _usual(sizes: Mapping[str, tuple[int, int]]) -> tuple[tuple[str, int], ...]:
    return tuple((name, values[0]) for name, values in sizes.items())


@lru_cache(maxsize=64)
def _outline(entry: Entry, arguments: tuple[tuple[str, Any], ...]) -> Network:
    """A network on the meta device."""
    with torch.device("meta"):
        return create_network(entry.name, **dict(arguments))


register_matcher(match_networks)
