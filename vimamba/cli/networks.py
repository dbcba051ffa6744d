"""The network that a command line names: a timm model or a run, with the input it was made for."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from vimamba.cli.errors import UsageError


@dataclass(frozen=True)
class Network:
    """A network in eval mode.

    Attributes:
        net: The network.
        name: Of the model.
        image_size: Channels, height and width of its input, pixels.
        data_config: Mean, standard deviation and the like, by timm's names.
        label_names: Classes in the order of the logits, if they are known.
        preprocessing: Of a run: the fields of its `vimamba.data.Preprocessing`.
        classifies: Whether it is a timm model, as opposed to a segmentation network.
    """

    net: nn.Module
    name: str
    image_size: tuple[int, int, int]
    data_config: dict[str, Any]
    label_names: list[str] | None = None
    preprocessing: dict[str, Any] | None = None
    classifies: bool = True


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments that name a network."""
    parser.add_argument("model", help="timm model name, or a folder that `vimamba fit` wrote")
    parser.add_argument("--pretrained", action="store_true", help="a model's published weights")
    parser.add_argument("--checkpoint", type=Path, help="a file with a model's weights")
    parser.add_argument("--ckpt", default="best", help="of a run: best (default), last or a file")
    parser.add_argument("--img-size", type=int, help="side of the input, pixels")
    note = "of a model's constructor, as in num_classes=10 dynamic_img_size=true"
    parser.add_argument("--model-kwargs", nargs="+", default=[], metavar="NAME=VALUE", help=note)


def open_network(given: Namespace) -> Network:
    """Make the network that the arguments name.

    Raises:
        UsageError: There is none, or an argument does not fit it.
    """
    if given.img_size is not None and given.img_size < 1:
        raise UsageError(f"--img-size {given.img_size} must be at least 1")
    run = Path(given.model)
    if not (run / "config.yaml").is_file():
        return _of_model(given)
    for option in ("pretrained", "checkpoint", "model_kwargs"):
        if getattr(given, option):
            name = option.replace("_", "-")
            raise UsageError(f"--{name} is for a model; {run} is a run with its own weights")
    return _of_run(run, given.ckpt, given.img_size)


def _of_model(given: Namespace) -> Network:
    import timm

    import vimamba  # noqa: F401  registers the models

    name, kwargs = given.model, parse_pairs(given.model_kwargs)
    if ":" not in name and not timm.is_model(name):
        raise UsageError(
            f"{name!r} is neither a model (see `vimamba list-models`) nor a run folder"
        )
    if given.checkpoint is not None:
        if not given.checkpoint.is_file():
            raise UsageError(f"--checkpoint {given.checkpoint} is not a file")
        kwargs["pretrained_cfg_overlay"] = {"file": str(given.checkpoint)}
    try:
        if given.img_size is not None and _is_fixed(name, kwargs):
            kwargs.setdefault("img_size", given.img_size)
        pretrained = given.pretrained or given.checkpoint is not None
        net = timm.create_model(name, pretrained=pretrained, **kwargs)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UsageError(f"{name}: {error}") from error
    cfg: Any = net.pretrained_cfg
    height, width = cfg["input_size"][1:]
    embed = getattr(net, "patch_embed", None)
    height, width = getattr(embed, "img_size", None) or (height, width)
    if given.img_size is not None:
        height = width = given.img_size
    channels: Any = getattr(net, "in_chans", cfg["input_size"][0])
    return Network(net.eval(), name, (channels, height, width), _data_config(cfg))


def _is_fixed(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether the model has to be made for an image size."""
    import timm

    probe = {key: value for key, value in kwargs.items() if key != "pretrained_cfg_overlay"}
    cfg: Any = timm.create_model(name, device="meta", **probe).pretrained_cfg
    return bool(cfg["fixed_input_size"])


def _of_run(run: Path, wish: str, img_size: int | None) -> Network:
    from vimamba.cli.recipe import quieten
    from vimamba.cli.runs import find_checkpoint, load_task

    quieten()
    task = load_task(run, find_checkpoint(run, wish))
    hparams = task.hparams
    side = img_size or hparams["img_size"]
    exported = json.loads((run / "export" / "config.json").read_text(encoding="utf-8"))
    return Network(
        task.scored_net.eval(),
        hparams["model"],
        (hparams["in_chans"], side, side),
        _data_config(exported.get("pretrained_cfg") or exported["preprocessing"]),
        list(task.class_names),
        exported.get("preprocessing"),
        classifies="pretrained_cfg" in exported,
    )


def _data_config(cfg: dict[str, Any]) -> dict[str, Any]:
    names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return {name: cfg[name] for name in names if cfg.get(name) is not None}


def parse_pairs(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, the values read as YAML."""
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--model-kwargs {pair} must read NAME=VALUE")
        parsed[name] = yaml.safe_load(value)
    return parsed
