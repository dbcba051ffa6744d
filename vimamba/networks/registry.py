"""Names of the whole networks, and the function that makes any of them."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from vimamba.names import check_free, unknown_name
from vimamba.networks.network import Network

# say where weights come from, which a network that is made again does not ask
_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(frozen=True)
class Entry:
    """A registered network.

    Attributes:
        name: What it is called.
        task: What it is for.
        build: Makes it.
    """

    name: str
    task: str
    build: Callable[..., Network]

    @property
    def network_cls(self) -> type[Network] | None:
        """Class of the network, where `build` is that or says so by its annotation."""
        made = self.build
        if not isinstance(made, type):
            made = inspect.get_annotations(made).get("return")
        return made if isinstance(made, type) and issubclass(made, Network) else None


_NETWORKS: dict[str, Entry] = {}


def register_network(
    build: Callable[..., Network] | None = None,
    *,
    task: str,
    name: str | None = None,
    replace: bool = False,
) -> Any:
    """Make a network available by name; a decorator with options, or a plain call.

    Args:
        build: A function or class that makes the network from keyword arguments: plain values, if
            it is to be saved. It starts from published weights on request only (`pretrained`). Of
            the task "segmentation", it takes `num_classes`, `in_chans`, `pretrained`, `img_size`
            and `aux` as `vimamba.create_segmenter` does, and gives a `vimamba.networks.Segmenter`;
            of the task "change", all but `aux`, and it gives a `vimamba.networks.ChangeDetector`.
        task: What the network is for, as in "segmentation".
        name: The function's own name by default.
        replace: Overwrite a network of the same name. One that comes with vimamba is always
            replaced, with a warning.

    Raises:
        ValueError: The name is taken or no identifier.
    """
    if build is None:
        return lambda build: register_network(build, task=task, name=name, replace=replace)
    name = str(name or getattr(build, "__name__", ""))
    if not name.isidentifier():
        raise ValueError(f"name={name!r} of a network must be an identifier, as in 'my_network'")
    there = _NETWORKS.get(name)
    taken = there and there.build
    check_free(name, taken, kind="network", home="vimamba.networks", replace=replace)
    _NETWORKS[name] = Entry(name, task, build)
    return build


def list_networks(task: str | None = None) -> list[str]:
    """Names of the registered networks, sorted: all, or those for one task.

    Raises:
        ValueError: No network is for this task.
    """
    tasks = {entry.task for entry in _NETWORKS.values()}
    if task is not None and task not in tasks:
        raise ValueError(unknown_name("task", task, tasks))
    return sorted(e.name for e in _NETWORKS.values() if task in (None, e.task))


def find_network(name: str) -> Entry:
    """What was registered under a name.

    Raises:
        ValueError: No network has this name.
    """
    if name not in _NETWORKS:
        raise ValueError(unknown_name("name", name, _NETWORKS))
    return _NETWORKS[name]


def create_network(name: str, **kwargs: Any) -> Network:
    """Make a whole network by its registered name.

    Args:
        name: One of `list_networks()`.
        **kwargs: Of the network.

    Raises:
        ValueError: The name is unknown, or an argument does not fit.
        TypeError: The network has no such argument.
    """
    network = find_network(name).build(**kwargs)
    if not isinstance(network, Network):
        kind = type(network).__name__
        raise TypeError(f"name={name!r} makes a {kind}, not a vimamba.networks.Network")
    kept = {key: value for key, value in kwargs.items() if key not in _WEIGHTS}
    network.config = {"name": name, **deepcopy(kept)}
    return network
