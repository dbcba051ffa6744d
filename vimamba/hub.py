"""Saves models as folders and Hub repositories that timm and transformers load.

timm's own `save_for_hf` records `num_classes` among the model's arguments, where transformers
hands it over a second time and fails; here it stands at the top level alone.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from huggingface_hub import HfApi, ModelCardData
from timm.models import PretrainedCfg, save_for_hf
from timm.utils.model import unwrap_model
from torch import nn

from vimamba.checkpoints import CheckpointError, check_finite, read_checkpoint
from vimamba.files import write_folder
from vimamba.reading import read_json

# where weights may lie in a folder, the first that is there
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
# of a pretrained config: all but where weights are
_CFG_FIELDS = set(PretrainedCfg.__dataclass_fields__) - {
    *("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"),
}
# what is said of weights as they were published, and may be wrong once they are trained further
_OF_PUBLISHED_WEIGHTS = ("tag", "notes", "description")

_CARD = """\
---
{data}
---

# {name}

`{architecture}` ({paper}), {classes}, as a [timm](https://github.com/huggingface/pytorch-image-models)
model.

It needs the `vimamba` package: timm and transformers know the architecture only once that has been
imported. Otherwise they call it unknown and advise a newer timm, which does not help.

```python
import timm
import vimamba  # makes {architecture} known

model = timm.create_model("{address}", pretrained=True)
```
{input}
Licence of the weights: {license}
"""

_INPUT = """
## Input

timm's transform does not prepare these images as in training: {reasons}.
What does is `preprocessing` in config.json:

```python
import json

from vimamba.data import Preprocessing

with open("config.json") as file:  # of this model
    prepare = Preprocessing.from_settings(json.load(file)["preprocessing"])
image = prepare.file("image.tif")[None]
```
"""


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    license: str | None = None,
    data_config: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> Path:
    """Write a model for `timm.create_model("local-dir:<folder>", pretrained=True)`.

    transformers reads the same folder (`AutoModelForImageClassification.from_pretrained`), and
    `TimmBackbone` its address. Both need `import vimamba` before.

    Args:
        model: A timm model; wrappers of DDP, of `torch.compile` and of timm's EMA are taken off.
        folder: Replaced in one step once config.json, model.safetensors and README.md are
            written, if it holds a model.
        label_names: Classes in the order of the logits.
        license: Of these weights, by the Hub's name ("mit", "cc-by-nc-4.0"). None takes that of the
            published weights, which weights trained from them inherit; "unknown" if none are.
        data_config: Input size, mean and the like where they are not those of the pretrained
            config; see `timm.data.resolve_data_config`.
        preprocessing: Fields of a `vimamba.data.Preprocessing`, which config.json keeps; the card
            says so where timm's transform cannot do the same.

    Returns:
        The folder.

    Raises:
        TypeError: `model` is no timm model, or one inside something else.
        ValueError: `label_names` are not as many as the logits, an argument that the model was
            made with cannot be written as JSON, or `folder` is a file or holds something else
            than a model.
        CheckpointError: Weights are not finite.
        WriteError: The disk is full, the folder cannot be written, or the like.
    """
    folder = Path(folder)
    is_taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if is_taken and not (folder / "model.safetensors").exists():
        raise ValueError(f"folder={str(folder)!r} is there and holds no model; it is not replaced")
    _check(model, label_names)
    with write_folder(folder) as part:
        _write(model, part, f"local-dir:{folder}", label_names, license, data_config, preprocessing)
    return folder


def create_skeleton(name: str, **kwargs: Any) -> nn.Module:
    """A model that takes no memory for its weights, if its constructor takes a device.

    Args:
        name: As for `timm.create_model`.
        **kwargs: Of the model.
    """
    try:
        return timm.create_model(name, device="meta", **kwargs)
    except TypeError:
        return timm.create_model(name, **kwargs)


def load_folder(folder: str | Path) -> nn.Module:
    """Build the model of a folder that `save_pretrained` or timm wrote, with its weights.

    Unlike timm's `local-dir:`, whose reader knows no bounds, this takes a folder from anybody:
    config.json names a registered model and plain arguments, and weights come from this folder.

    Args:
        folder: Holds config.json and model.safetensors, or another file that timm would read.

    Returns:
        The model in eval mode.

    Raises:
        CheckpointError: Something is missing, does not fit, or is not finite.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", CheckpointError)
    cfg = config.get("pretrained_cfg", config)
    name, arguments = config.get("architecture"), config.get("model_args") or {}
    where = f"{folder / 'config.json'}"
    if not isinstance(cfg, dict) or not isinstance(arguments, dict):
        raise CheckpointError(f"{where}: pretrained_cfg and model_args must hold names and values")
    if not isinstance(name, str) or ":" in name or not timm.is_model(name):
        raise CheckpointError(
            f"{where}: architecture={name!r} is no model that is known here; one of your own is "
            "made known with --import MODULE_OR_FILE, or by importing it"
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
    # values that no model can be built from
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder} builds no {name}: {text}") from error
    return model.eval()


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    label_names: Sequence[str] | None = None,
    license: str | None = None,
    data_config: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = "Add model",
) -> str:
    """Upload a model to a Hugging Face Hub repository, which is made if it is not there.

    Args:
        model: A timm model; see `save_pretrained`.
        repo: "owner/name"; with "name" alone the owner is you.
        label_names: Classes in the order of the logits.
        license: Of these weights; see `save_pretrained`.
        data_config: Of timm's transform; see `save_pretrained`.
        preprocessing: See `save_pretrained`.
        private: Whether a new repository is private.
        token: Of the Hub; that of `hf auth login` if None.
        message: Of the commit.

    Returns:
        Address of the commit.
    """
    _check(model, label_names)
    api = HfApi(token=token)
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as temporary:
        part = Path(temporary) / "model"
        _write(model, part, f"hf-hub:{repo}", label_names, license, data_config, preprocessing)
        commit = api.upload_folder(repo_id=repo, folder_path=part, commit_message=message)
    return str(commit)


def _check(model: nn.Module, label_names: Sequence[str] | None) -> None:
    """Fail, before anything is written, on what timm could not load or nobody could use."""
    model = unwrap_model(model)
    # of the class: wrappers such as peft's pass attributes on, but name the weights otherwise
    if not hasattr(type(model), "reset_classifier"):
        raise TypeError(
            f"model is a {type(model).__name__}, not a timm classifier or backbone; merge adapters "
            "before, make backbones without features_only, and save a Segmenter's state_dict"
        )
    if label_names is not None and len(label_names) != model.num_classes:
        raise ValueError(f"{len(label_names)} label_names for {model.num_classes} classes")
    check_finite(model.state_dict())


def _write(
    model: nn.Module,
    folder: Path,
    address: str,
    label_names: Sequence[str] | None,
    license: str | None,
    data_config: dict[str, Any] | None,
    preprocessing: dict[str, Any] | None,
) -> None:
    """Write weights, config.json and the card into a new folder."""
    model = unwrap_model(model)
    names = {"label_names": list(label_names)} if label_names is not None else {}
    save_for_hf(
        model, str(folder), model_config=names, safe_serialization=True, data_config=data_config
    )
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    cfg = config["pretrained_cfg"]
    for key in _OF_PUBLISHED_WEIGHTS:
        cfg.pop(key, None)
    if license is not None:
        cfg.pop("origin_url", None)
        cfg["license"] = license
    if preprocessing is not None:
        config["preprocessing"] = preprocessing
    config_file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    card = _card(config, address)
    (folder / "README.md").write_text(card, encoding="utf-8")
    # the weights come readable for their owner only
    for file in folder.iterdir():
        shutil.copymode(config_file, file)


def _card(config: dict[str, Any], address: str) -> str:
    """The model card: what it is, how to load it, whose licence it is under."""
    cfg, classes = config["pretrained_cfg"], config["num_classes"]
    license = cfg.get("license", "unknown")
    data = ModelCardData(
        library_name="timm",
        license=license,
        pipeline_tag="image-classification" if classes else "image-feature-extraction",
        tags=["timm", "vimamba"],
    )
    paper = ", ".join(str(cfg[key]) for key in ("paper_name", "paper_ids") if cfg.get(key))
    published = cfg.get("license") and cfg.get("origin_url")
    origin = f" (published at {cfg['origin_url']})" if published else ""
    return _CARD.format(
        data=data.to_yaml(),
        name=address.split(":", 1)[1].rstrip("/").rsplit("/", 1)[-1],
        architecture=config["architecture"],
        paper=paper or "no paper named",
        classes=f"{classes} classes" if classes else "without a classifier",
        address=address,
        license=f"{license}{origin}",
        input=_describe_input(config.get("preprocessing")),
    )


def _describe_input(preprocessing: dict[str, Any] | None) -> str:
    """What the card says of images that timm's transform does not prepare."""
    found = preprocessing or {"in_chans": 3}
    intensity = found.get("intensity") or {}
    reasons = []
    if found["in_chans"] not in (1, 3) or found.get("bands"):
        reasons.append(f"the network takes {found['in_chans']} bands of them")
    if any(intensity.get(name) for name in ("window", "ranges", "percentiles")):
        reasons.append("their values are scaled by ranges of their own")
    if intensity.get("zscore"):
        reasons.append("each is given mean 0 and deviation 1")
    return _INPUT.format(reasons=", ".join(reasons)) if reasons else ""
