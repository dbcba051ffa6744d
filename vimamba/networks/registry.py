"""Names of the whole networks."""

from collections.abc import Callable

from vimamba.networks.segmenter import Segmenter

_NETWORKS: dict[str, Callable[..., Segmenter]] = {}


def register_segmenter(entry: Callable[..., Segmenter]) -> Callable[..., Segmenter]:
    """Make a network known by the name of the function that builds it.

    It takes `num_classes`, `in_chans`, `pretrained`, `img_size` and `aux` as
    `vimamba.create_segmenter` does, and further arguments of its own.
    """
    _NETWORKS[entry.__name__] = entry
    return entry


def list_segmenters() -> list[str]:
    """Names of the whole networks that `vimamba.create_segmenter` knows besides backbones."""
    return sorted(_NETWORKS)


def find_segmenter(name: str) -> Callable[..., Segmenter] | None:
    """The function that builds the network of this name, if there is one."""
    return _NETWORKS.get(name)
