"""Saves models and networks as folders and Hub repositories, and loads them.

timm and transformers load those of models, `vimamba.load_network` those of networks. timm's own
`save_for_hf` records `num_classes` among the model's arguments, where transformers passes it a
second time and fails; here it is only at the top level.
"""

import inspect
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_model
from timm.models import PretrainedCfg, save_for_hf
from timm.utils.model import unwrap_model
from torch import nn

from vimamba.checkpoints import CheckpointError, check_finite, read_checkpoint
from vimamba.files import write_folder
from vimamba.model_card import model_card, network_card
from vimamba.networks import Network, create_network, find_network, load_network
from vimamba.reading import read_json

# possible weight files in a folder; the first existing one is used
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
# keys of a pretrained config, without the location of weights
_CFG_FIELDS = set(PretrainedCfg.__dataclass_fields__) - {
    *("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"),
}
# the same for networks
_OF_NETWORKS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
# metadata of the published weights that no longer holds after fine-tuning
_OF_PUBLISHED_WEIGHTS = ("tag", "notes", "description")


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    label_values: Sequence[int] | None = None,
    license: str | None = None,
    data_config: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> Path:
    """Write a model or network to a folder with config.json, model.safetensors and README.md.

    `timm.create_model("local-dir:<folder>", pretrained=True)` loads a model. transformers reads the
    same folder (`AutoModelForImageClassification.from_pretrained`), and `TimmBackbone` its address.
    Both need `import vimamba` first. `vimamba.load_network(folder)` loads a network.

    Args:
        model: A timm model, or a network created by `vimamba.create_network` or `create_segmenter`;
            wrappers of DDP, `torch.compile` and timm's EMA are removed.
        folder: Folder to write; an existing folder with a model is replaced in one step once
            config.json, model.safetensors and README.md are written.
        label_names: Classes in the order of the logits; two for a network with one logit.
        label_values: For a segmentation network: the value of each class in masks, for config.json.
        license: License of these weights, by the Hub's name ("mit", "cc-by-nc-4.0"). None means
            that of the published weights, which fine-tuned weights inherit; "unknown" without any.
        data_config: Input size, mean and so on, if they differ from the pretrained config; see
            `timm.data.resolve_data_config`.
        preprocessing: Fields of a `vimamba.data.Preprocessing`, stored in config.json; the card
            mentions it if timm's transform cannot do the same.

    Returns:
        The folder.

    Raises:
        TypeError: `model` is neither, or is wrapped in something else.
        ValueError: The number of `label_names` differs from that of the logits, an argument of the
            model cannot be written as JSON, a network was created from its class and not by name,
            or was modified afterwards, `folder` is a file or contains something other than a model,
            or timm is too old to save its models.
        CheckpointError: Weights are not finite.
        WriteError: The disk is full, the folder is not writable, or similar.
    """
    folder = Path(folder)
    is_taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if is_taken and not (folder / "model.safetensors").exists():
        raise ValueError(f"folder={str(folder)!r} exists and has no model; it is not replaced")
    about = _About(label_names, label_values, license, data_config or {}, preprocessing)
    model = _checked(model, about)
    with write_folder(folder) as part:
        _write(model, part, f"local-dir:{folder}", about)
    return folder


def load_folder(folder: str | Path) -> nn.Module:
    """Build the model or network of a folder written by `save_pretrained` or timm.

    Unlike timm's `local-dir:`, whose reader has no limits, this accepts untrusted folders:
    config.json names a registered model or network and plain arguments, and weights come from this
    folder.

    Args:
        folder: Contains config.json and model.safetensors, or another file that timm would read.

    Returns:
        The model or network in eval mode.

    Raises:
        CheckpointError: Something is missing, does not fit, or is not finite.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", CheckpointError)
    if "network" in config:
        return load_network(folder)
    cfg = config.get("pretrained_cfg", config)
    name, arguments = config.get("architecture"), config.get("model_args") or {}
    where = f"{folder / 'config.json'}"
    if not isinstance(cfg, dict) or not isinstance(arguments, dict):
        raise CheckpointError(f"{where}: pretrained_cfg and model_args must be mappings")
    if not isinstance(name, str) or ":" in name or not timm.is_model(name):
        raise CheckpointError(
            f"{where}: architecture={name!r} is not a known model; register your own "
            "with --import MODULE_OR_FILE, or by importing it"
        )
    weights = next((folder / file for file in _WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{folder} holds no {_WEIGHTS[0]}")
    kept = {k: v for k, v in cfg.items() if k in _CFG_FIELDS}
    classes = config.get("num_classes", cfg.get("num_classes"))
    if classes is not None:
        arguments = {**arguments, "num_classes": classes}
        kept["num_classes"] = classes
    if config.get("label_names") is not None:
        kept["label_names"] = config["label_names"]
    try:
        model = timm.create_model(name, pretrained_cfg=kept, **arguments)
        state: Any = read_checkpoint(weights)
        check_finite(state)
        model.load_state_dict(state)
    except CheckpointError:
        raise
    # values from which no model can be built
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: {name} cannot be built: {text}") from error
    return model.eval()


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    label_names: Sequence[str] | None = None,
    label_values: Sequence[int] | None = None,
    license: str | None = None,
    data_config: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = "Add model",
) -> str:
    """Upload a model to a Hugging Face Hub repository, which is created if needed.

    Args:
        model: A timm model or a network; see `save_pretrained`.
        repo: "owner/name"; with "name" alone the owner is you.
        label_names: Classes in the order of the logits.
        label_values: See `save_pretrained`.
        license: License of these weights; see `save_pretrained`.
        data_config: For timm's transform; see `save_pretrained`.
        preprocessing: See `save_pretrained`.
        private: Whether a new repository is private.
        token: Token of the Hub; that of `hf auth login` if None.
        message: Commit message.

    Returns:
        Address of the commit.
    """
    about = _About(label_names, label_values, license, data_config or {}, preprocessing)
    model = _checked(model, about)
    api = HfApi(token=token)
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as temporary:
        part = Path(temporary) / "model"
        _write(model, part, f"hf-hub:{repo}", about)
        commit = api.upload_folder(repo_id=repo, folder_path=part, commit_message=message)
    return str(commit)


@dataclass(frozen=True)
class _About:
    """Information saved with weights; see `save_pretrained`."""

    label_names: Sequence[str] | None
    label_values: Sequence[int] | None
    license: str | None
    data_config: dict[str, Any]
    preprocessing: dict[str, Any] | None


def _checked(model: nn.Module, about: _About) -> nn.Module:
    """The unwrapped model; fails, before anything is written, if it could not be loaded again."""
    model = unwrap_model(model)
    # checked on the class: wrappers such as peft's forward attributes, but rename the weights
    if isinstance(model, Network):
        _check_config(model)
    elif not hasattr(type(model), "reset_classifier"):
        raise TypeError(
            f"model is a {type(model).__name__}, not a timm classifier or backbone, nor a network; "
            "merge adapters first, and create backbones without features_only"
        )
    names = about.label_names
    classes = _count_classes(model)
    if names is not None and len(names) != classes:
        raise ValueError(f"{len(names)} label_names for {classes} classes")
    check_finite(model.state_dict())
    return model


def _count_classes(model: nn.Module) -> int:
    """Number of classes of a model; one logit of a network means two."""
    logits: Any = model.num_classes
    return 2 if isinstance(model, Network) and logits == 1 else logits


def _check_config(network: Network) -> None:
    """Fail on a network that cannot be rebuilt from its name and plain arguments."""
    if network.config is None:
        raise ValueError(
            f"model was created from its class, {type(network).__name__}; to save it, create it by "
            "name with vimamba.create_network"
        )
    for key, value in network.config.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            text = f"{key}={value!r} of the network cannot be written as JSON: {error}"
            raise ValueError(text) from None
    # rebuilding must not affect later random numbers
    with torch.random.fork_rng(devices=[]):
        again = create_network(**network.config)
    ours, theirs = ({k: v.shape for k, v in n.state_dict().items()} for n in (network, again))
    unlike = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if unlike:
        raise ValueError(
            f"model is not what {network.config} builds: {len(unlike)} weights differ, such as "
            f"{unlike[0]}; merge adapters first, and pass changes as arguments"
        )


def _write(model: nn.Module, folder: Path, address: str, about: _About) -> None:
    """Write weights, config.json and the card into a new folder."""
    if isinstance(model, Network):
        config, card = _write_network(model, folder, address, about)
    else:
        config, card = _write_model(model, folder, address, about)
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    # safetensors makes the weights readable by their owner only
    for file in folder.iterdir():
        shutil.copymode(config_file, file)


def _write_model(
    model: nn.Module, folder: Path, address: str, about: _About
) -> tuple[dict[str, Any], str]:
    """Write a timm model's weights; returns the contents of config.json and the card."""
    if "data_config" not in inspect.signature(save_for_hf).parameters:
        raise ValueError(
            f"model: timm {timm.__version__} does not record how a model was made; "
            "saving one needs timm>=1.0.31"
        )
    names = {} if about.label_names is None else {"label_names": list(about.label_names)}
    save_for_hf(
        model,
        str(folder),
        model_config=names,
        safe_serialization=True,
        data_config=about.data_config or None,
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    cfg = config["pretrained_cfg"]
    for key in _OF_PUBLISHED_WEIGHTS:
        cfg.pop(key, None)
    if about.license is not None:
        cfg.pop("origin_url", None)
        cfg["license"] = about.license
    if about.preprocessing is not None:
        config["preprocessing"] = about.preprocessing
    return config, model_card(config, address)


def _write_network(
    network: Network, folder: Path, address: str, about: _About
) -> tuple[dict[str, Any], str]:
    """Write a network's weights; returns the contents of config.json and the card."""
    folder.mkdir(exist_ok=True)
    save_model(network, str(folder / "model.safetensors"))
    assert network.config is not None
    task = find_network(network.config["name"]).task
    license = about.license or network.license or "unknown"
    known = {**network.pretrained_cfg, **about.data_config}
    config = {
        "network": network.config,
        "task": task,
        "license": license,
        "pretrained_cfg": {key: known[key] for key in _OF_NETWORKS if known.get(key) is not None},
        "label_names": None if about.label_names is None else list(about.label_names),
        "label_values": None if about.label_values is None else list(about.label_values),
        "preprocessing": about.preprocessing,
    }
    config = {key: value for key, value in config.items() if value is not None}
    classes = _count_classes(network)
    return config, network_card(config, address, network.pretrained_cfg, classes)
