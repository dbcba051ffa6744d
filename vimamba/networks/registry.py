"""Names of the whole networks, and the function that creates them."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from vimamba.names import check_free, expect_maker, unknown_name
from vimamba.networks.network import Network

# arguments on the source of weights, which are not needed to rebuild a network
_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(frozen=True)
class Entry:
    """A registered network.

    Attributes:
        name: Registered name.
        task: Task of the network.
        build: Function or class that builds it.
    """

    name: str
    task: str
    build: Callable[..., Network]

    @property
    def network_cls(self) -> type[Network] | None:
        """Class of the network, if `build` is a class or annotates its return type."""
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
        build: A function or class that builds the network from keyword arguments, which must be
            plain values if it is to be saved. It starts from published weights only on request
            (`pretrained`). For the task "segmentation", it takes `num_classes`, `in_chans`,
            `pretrained`, `img_size` and `aux` like `vimamba.create_segmenter`, and returns a
            `vimamba.networks.Segmenter`; for the task "change", all but `aux`, and it returns a
            `vimamba.networks.ChangeDetector`.
        task: Task of the network, such as "segmentation".
        name: The function's own name by default.
        replace: Overwrite a network of the same name. One that comes with vimamba is always
            replaced, with a warning.

    Raises:
        TypeError: `build` is not a function or class.
        ValueError: The name is taken or not an identifier.
    """
    if build is None:
        return lambda build: register_network(build, task=task, name=name, replace=replace)
    expect_maker(build, "network")
    name = str(name or getattr(build, "__name__", ""))
    if not name.isidentifier():
        raise ValueError(f"name={name!r} of a network must be an identifier, such as 'my_network'")
    there = _NETWORKS.get(name)
    taken = there and there.build
    check_free(name, taken, kind="network", home="vimamba.networks", replace=replace)
    _NETWORKS[name] = Entry(name, task, build)
    return build


def list_networks(task: str | None = None) -> list[str]:
    """Names of the registered networks, sorted: all, or only those for one task.

    Raises:
        ValueError: No network is for this task.
    """
    tasks = {entry.task for entry in _NETWORKS.values()}
    if task is not None and task not in tasks:
        raise ValueError(unknown_name("task", task, tasks))
    return sorted(e.name for e in _NETWORKS.values() if task in (None, e.task))


def find_network(name: str) -> Entry:
    """The registered entry of a name.

    Raises:
        ValueError: No network has this name.
    """
    if name not in _NETWORKS:
        raise ValueError(unknown_name("name", name, _NETWORKS))
    return _NETWORKS[name]


def create_network(name: str, **kwargs: Any) -> Network:
    """Create a whole network by its registered name.

    Args:
        name: One of `list_networks()`.
        **kwargs: Arguments of the network.

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
