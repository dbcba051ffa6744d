"""Loads a network from a folder or Hub repository written by `save_pretrained`.

Its content is untrusted data: it names a registered network and plain arguments.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors.torch import load_model

from vimamba.checkpoints import CheckpointError, check_finite, read_checkpoint
from vimamba.networks.network import Network
from vimamba.networks.registry import create_network
from vimamba.reading import read_json

_HUB = "hf-hub:"
_FILES = ("config.json", "model.safetensors")
# arguments of timm and ours that read files
_ELSEWHERE = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}


def load_network(place: str | Path) -> Network:
    """Load a saved network, in evaluation mode.

    Args:
        place: A folder written by `vimamba.save_pretrained` or a run, or "hf-hub:OWNER/NAME" or
            "hf-hub:OWNER/NAME@REVISION". Its config.json also has the class names and the
            preprocessing.

    Raises:
        CheckpointError: There is no such network, or one whose weights do not fit or are not
            finite.
        OSError: The Hub cannot be reached, or has no such repository.
    """
    folder = _fetch(str(place)) if str(place).startswith(_HUB) else Path(place)
    config, weights = (folder / name for name in _FILES)
    settings = read_json(config, CheckpointError) if config.is_file() else {}
    network = settings.get("network")
    if not isinstance(network, dict) or not weights.is_file():
        raise CheckpointError(f"{str(place)!r} does not contain a network saved by vimamba")
    for key, value in _entries(network):
        if key in _ELSEWHERE or (isinstance(value, str) and ":" in value):
            raise CheckpointError(f"{config}: {key}={value!r} names files outside the folder")
    # the weights come from the folder
    arguments = {key: value for key, value in network.items() if key != "pretrained"}
    state: Any = read_checkpoint(weights)
    try:
        check_finite(state)
        net = create_network(**arguments)
        load_model(net, weights)
    # values from which no network can be built
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{str(place)!r}: {text}") from error
    cfg, license = settings.get("pretrained_cfg"), settings.get("license")
    cfg = cfg if isinstance(cfg, dict) else {}
    kept = {key: tuple(cfg[key]) for key in ("mean", "std") if isinstance(cfg.get(key), list)}
    net.pretrained_cfg.update(kept)
    net.license = license if isinstance(license, str) else None
    return net.eval()


def _fetch(address: str) -> Path:
    """The local folder of a Hub repository."""
    repo, _, revision = address.removeprefix(_HUB).partition("@")
    return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(_FILES)))


def _entries(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested dictionaries and lists, with its key."""
    yield key, values
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _entries(value, name)
    elif isinstance(values, list):
        for value in values:
            yield from _entries(value, key)
