"""Model cards of saved models and networks: description, loading and license."""

from typing import Any

from huggingface_hub import ModelCardData

_CARD = """\
---
{data}
---

# {name}

`{architecture}` ({paper}), {classes}, as a [timm](https://github.com/huggingface/pytorch-image-models)
model.

It needs the `vimamba` package: timm and transformers know the architecture only after it
has been imported. Otherwise they report it as unknown and suggest a newer timm, which does not
help.

```python
import timm
import vimamba  # registers {architecture}

model = timm.create_model("{address}", pretrained=True)
```
{input}
License of the weights: {license}
"""

_NETWORK_CARD = """\
---
{data}
---

# {name}

`{architecture}` ({paper}), {classes}, a network for {task}. It needs the `vimamba` package:

```python
import vimamba

network = vimamba.load_network("{address}")
```
{input}
License of the weights: {license}
"""

# license names of the Hub
_PIPELINES = {
    "change": "image-segmentation",
    "restoration": "image-to-image",
    "segmentation": "image-segmentation",
}

_INPUT = """
## Input

{reason}`preprocessing` in config.json prepares images as in training:

```python
import json

from vimamba.data import Preprocessing

with open("config.json") as file:  # of this model
    prepare = Preprocessing.from_settings(json.load(file)["preprocessing"])
image = prepare.file("image.tif")[None]
```
"""

_VOLUME_INPUT = """
## Input

`preprocessing` in config.json prepares volumes as in training; the network sees windows of them:

```python
import json
from pathlib import Path

from monai.inferers import sliding_window_inference
from vimamba.data import VolumeCase, VolumePreprocessing
from vimamba.sizes import sides_of

with open("config.json") as file:  # of this model
    prepare = VolumePreprocessing.from_settings(json.load(file)["preprocessing"])
case = VolumeCase((Path("volume.nii.gz"),), None, Path())
volume, size = prepare.volume(case)[None], sides_of(prepare.img_size, 3)
logits = sliding_window_inference(volume, size, 1, network.eval(), 0.5, mode="gaussian")
```
"""


def model_card(config: dict[str, Any], address: str) -> str:
    """The card of a timm model: description, loading and license.

    Args:
        config: As in config.json.
        address: "local-dir:FOLDER" or "hf-hub:OWNER/NAME".
    """
    cfg, classes = config["pretrained_cfg"], config["num_classes"]
    license = cfg.get("license", "unknown")
    data = ModelCardData(
        library_name="timm",
        license=license,
        pipeline_tag="image-classification" if classes else "image-feature-extraction",
        tags=["timm", "vimamba"],
    )
    published = cfg.get("license") and cfg.get("origin_url")
    origin = f" (published at {cfg['origin_url']})" if published else ""
    return _CARD.format(
        data=data.to_yaml(),
        name=_last_part(address),
        architecture=config["architecture"],
        paper=_paper(cfg),
        classes=f"{classes} classes" if classes else "without a classifier",
        address=address,
        license=f"{license}{origin}",
        input=_describe_input(config.get("preprocessing")),
    )


def network_card(config: dict[str, Any], address: str, cfg: dict[str, Any], classes: int) -> str:
    """The card of a network: description, loading and license.

    Args:
        config: As in config.json.
        address: "local-dir:FOLDER" or "hf-hub:OWNER/NAME".
        cfg: Its `pretrained_cfg`.
        classes: Number of classes; 0 if it has none.
    """
    data = ModelCardData(
        library_name="vimamba",
        license=config["license"],
        pipeline_tag=_PIPELINES.get(config["task"]),
        tags=["vimamba"],
    )
    return _NETWORK_CARD.format(
        data=data.to_yaml(),
        name=_last_part(address),
        architecture=cfg.get("architecture", config["network"]["name"]),
        paper=_paper(cfg),
        classes=f"{classes} classes" if classes else "without classes",
        task=config["task"],
        address=address.removeprefix("local-dir:"),
        license=config["license"],
        input=_network_input(config.get("preprocessing")),
    )


def _network_input(preprocessing: dict[str, Any] | None) -> str:
    """What the card of a network says of its images or volumes."""
    if preprocessing is None:
        return ""
    return _VOLUME_INPUT if "spacing" in preprocessing else _INPUT.format(reason="")


def _last_part(address: str) -> str:
    return address.split(":", 1)[1].rstrip("/").rsplit("/", 1)[-1]


def _paper(cfg: dict[str, Any]) -> str:
    paper = ", ".join(str(cfg[key]) for key in ("paper_name", "paper_ids") if cfg.get(key))
    return paper or "no paper named"


def _describe_input(preprocessing: dict[str, Any] | None) -> str:
    """Section on the input, if timm's transform cannot prepare it."""
    found = preprocessing or {"in_chans": 3}
    intensity = found.get("intensity") or {}
    reasons = []
    if found["in_chans"] not in (1, 3) or found.get("bands"):
        reasons.append(f"the network takes {found['in_chans']} bands of them")
    if any(intensity.get(name) for name in ("window", "ranges", "percentiles")):
        reasons.append("their values are scaled by custom ranges")
    if intensity.get("zscore"):
        reasons.append("each is normalized to mean 0 and standard deviation 1")
    reason = f"timm's transform does not prepare these images: {', '.join(reasons)}.\n"
    return _INPUT.format(reason=reason) if reasons else ""
