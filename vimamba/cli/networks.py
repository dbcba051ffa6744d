"""The network given on a command line: a timm model or a run, with the input it was made for."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from vimamba.console import say
from vimamba.errors import UsageError
from vimamba.sizes import ImageSize, height_and_width, read_size, sides_of

if TYPE_CHECKING:
    from vimamba.data.preprocessing import Preprocessing
    from vimamba.tasks.windows import Scene


@dataclass(frozen=True)
class Network:
    """A network in eval mode.

    Attributes:
        net: The network.
        name: Name of the model.
        image_size: Channels, height and width of its input, pixels; for volumes channels, depth,
            height, width. Of each image for networks that take two.
        data_config: Mean, standard deviation and the like, by timm's names.
        label_names: Classes in the order of the logits, if they are known.
        label_values: For a segmentation network: the value of each class in masks.
        preprocessing: For a run: the fields of its `vimamba.data.Preprocessing`.
    """

    net: nn.Module
    name: str
    image_size: tuple[int, ...]
    data_config: dict[str, Any]
    label_names: list[str] | None = None
    label_values: list[int] | None = None
    preprocessing: dict[str, Any] | None = None

    def read(self, paths: Sequence[Path]) -> Tensor:
        """Read an image, or a volume of one or more files, cropped to the input size.

        Returns:
            (C, *sides); a smaller one is padded with zeros.
        """
        return self._cut(self._open(paths)[0], None)[0]

    def read_window(
        self, path: Path, point: tuple[int, int] | None
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """Read an image as `read` does; of one that is read by window, the window around a point.

        Args:
            path: The image.
            point: Row and column: of the image if it `is_cut`, otherwise of the input.

        Returns:
            The input (C, H, W), and the point in it.

        Raises:
            UsageError: The point is outside the image.
        """
        if not self.is_cut:
            return self.read([path]), point
        scene, size = self._open([path])
        if point is None:
            if any(have > side for have, side in zip(scene.size, self.image_size[1:], strict=True)):
                height, width = self.image_size[1:]
                say(f"{path}: the central window of {height} x {width}; --point Y X moves it")
            return self._cut(scene, None)[0], None
        if any(not 0 <= at < length for at, length in zip(point, size, strict=True)):
            height, width = size
            raise UsageError(
                f"--point {point[0]} {point[1]} is outside {path}, {height} x {width} pixels"
            )
        # the network may take images at another scale
        there = [at * n // whole for at, n, whole in zip(point, scene.size, size, strict=True)]
        window, (top, left) = self._cut(scene, there)
        return window, (there[0] - top, there[1] - left)

    @property
    def is_cut(self) -> bool:
        """Whether images keep their resolution and are read by window."""
        return len(self.image_size) == 3 and self._prepare.fit == "window"

    def _open(self, paths: Sequence[Path]) -> "tuple[Scene, tuple[int, ...]]":
        """The prepared image or volume, and its size before."""
        from vimamba.data.items import FileImage
        from vimamba.tasks.segmentation.inputs import OpenImage
        from vimamba.tasks.windows import Scene

        if len(self.image_size) == 4:
            volume = Scene.of(self._volume(paths)[None])
            return volume, volume.size
        opened = OpenImage(FileImage(paths[0]), self._prepare)
        made = opened.network_input
        return made if isinstance(made, Scene) else Scene.of(made[None]), opened.size

    def _cut(self, scene: "Scene", point: Sequence[int] | None) -> tuple[Tensor, list[int]]:
        """The part of an image of the input's size around a point, or in the middle.

        Returns:
            (C, *sides), and where it starts along each axis, which is negative if it is padded.
        """
        sides = self.image_size[1:]
        starts, parts, padding = [], [], []
        for axis, (have, side) in enumerate(zip(scene.size, sides, strict=True)):
            if have < side:
                starts.append(-((side - have) // 2))
            else:
                first = (have - side) // 2 if point is None else point[axis] - side // 2
                starts.append(min(max(first, 0), have - side))
            parts.append(slice(max(starts[-1], 0), min(starts[-1] + side, have)))
            before = max(-starts[-1], 0)
            # `pad` takes the last axis first
            padding = [before, max(side - have, 0) - before, *padding]
        return F.pad(scene.cut(*parts)[0], padding), starts

    def _volume(self, paths: Sequence[Path]) -> Tensor:
        """(C, d, h, w) at the network's spacing."""
        from vimamba.data.volumes.cases import VolumeCase
        from vimamba.data.volumes.preprocessing import VolumePreprocessing

        if self.preprocessing is None:
            raise UsageError(
                f"{self.name} does not say how volumes are preprocessed; leave out --data"
            )
        case = VolumeCase(tuple(paths), None, paths[0].parent)
        case.check()
        return VolumePreprocessing.from_settings(self.preprocessing).volume(case)

    @cached_property
    def _prepare(self) -> "Preprocessing":
        """A run's own way from a file to the input, or that of a model's timm transform."""
        from vimamba.data.preprocessing import Preprocessing

        channels, height, width = self.image_size
        settings = self.preprocessing
        if settings is None:
            settings = {"in_chans": channels, "interpolation": "bicubic", **self.data_config}
            for name in ("mean", "std"):  # of published weights, for a different number of channels
                values = settings[name]
                settings[name] = values if len(values) == channels else [mean(values)] * channels
        return Preprocessing.from_settings({**settings, "img_size": (height, width)})


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that specify a network."""
    what = "model name, a folder written by `vimamba fit` or loadable by timm, or hf-hub:OWNER/NAME"
    parser.add_argument("model", help=what)
    parser.add_argument(
        "--pretrained", action="store_true", help="load a model's published weights"
    )
    parser.add_argument("--checkpoint", type=Path, help="a file with a model's weights")
    parser.add_argument("--ckpt", help="for a run: best (default), last or a file")
    parser.add_argument("--img-size", help="input size in pixels: a side, 96x160 or 32x96x96")
    note = "arguments of a model's constructor, such as num_classes=10 dynamic_img_size=true"
    parser.add_argument("--model-kwargs", nargs="+", default=[], metavar="NAME=VALUE", help=note)


def open_network(given: Namespace) -> Network:
    """Build the network that the arguments specify.

    Raises:
        UsageError: It does not exist, or an argument does not fit it.
    """
    size = None if given.img_size is None else read_size(given.img_size, None, name="--img-size")
    run = Path(given.model.removeprefix("local-dir:"))
    is_run = (run / "config.yaml").is_file()
    what = "run" if is_run else "folder" if run.is_dir() else "model"
    if what != "run" and given.ckpt is not None:
        raise UsageError(f"--ckpt is for a run; {given.model} is a {what}")
    if what == "model":
        return _of_model(given, size)
    for option in ("pretrained", "checkpoint", "model_kwargs"):
        if getattr(given, option):
            name = option.replace("_", "-")
            raise UsageError(f"--{name} is for a model; {run} is a {what} with its own weights")
    if is_run:
        return _of_run(run, given.ckpt or "best", size)
    return _of_folder(run, size)


def _of_model(given: Namespace, size: ImageSize | None) -> Network:
    import timm

    import vimamba  # noqa: F401  registers the models

    name, kwargs = given.model, parse_pairs(given.model_kwargs)
    if ":" not in name and not timm.is_model(name):
        raise UsageError(
            f"{name!r} is neither a model (see `vimamba list-models`; register your "
            "own with --import MODULE_OR_FILE) nor a folder"
        )
    if given.checkpoint is not None:
        if not given.checkpoint.is_file():
            raise UsageError(f"--checkpoint {given.checkpoint} is not a file")
        kwargs["pretrained_cfg_overlay"] = {"file": str(given.checkpoint)}
    try:
        if size is not None and _is_fixed(name, kwargs):
            kwargs.setdefault("img_size", size)
        # an address always has weights
        pretrained = given.pretrained or given.checkpoint is not None or ":" in name
        net = timm.create_model(name, pretrained=pretrained, **kwargs)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UsageError(f"{name}: {error}") from error
    return _of_timm(net, name, size)


def _of_timm(net: nn.Module, name: str, img_size: ImageSize | None) -> Network:
    cfg: Any = net.pretrained_cfg
    height, width = cfg["input_size"][1:]
    embed = getattr(net, "patch_embed", None)
    height, width = getattr(embed, "img_size", None) or (height, width)
    if img_size is not None:
        height, width = height_and_width(img_size)
    channels: Any = getattr(net, "in_chans", cfg["input_size"][0])
    labels = cfg.get("label_names")
    return Network(
        net.eval(),
        name,
        (channels, height, width),
        _data_config(cfg),
        None if labels is None else list(labels),
    )


def _of_folder(folder: Path, img_size: ImageSize | None) -> Network:
    """What `save_pretrained`, `vimamba export --to safetensors` or a run's export wrote."""
    from vimamba.checkpoints import CheckpointError
    from vimamba.hub import load_folder
    from vimamba.reading import read_json

    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is neither a run (there is no config.yaml) nor a model's folder (there is "
            "no config.json)"
        )
    config = read_json(folder / "config.json", UsageError)
    net: Any = load_folder(folder)
    preprocessing = config.get("preprocessing")
    if "network" not in config:
        network = _of_timm(net, str(config["architecture"]), img_size)
        return replace(network, preprocessing=preprocessing)
    if preprocessing is not None and not isinstance(preprocessing, dict):
        raise CheckpointError(f"{folder / 'config.json'}: preprocessing must be a mapping")
    sides = net.pretrained_cfg["input_size"][1:]
    size = img_size or (preprocessing or net.config).get("img_size")
    names, values = config.get("label_names"), config.get("label_values")
    return Network(
        net,
        str(net.config.get("model", net.config["name"])),
        (net.in_chans, *(sides_of(size, len(sides)) if size else sides)),
        _data_config(preprocessing or net.pretrained_cfg),
        list(names) if isinstance(names, list) else None,
        list(values) if isinstance(values, list) else None,
        preprocessing,
    )


def _is_fixed(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether the model has to be built for one image size."""
    from vimamba.timm_names import create_skeleton

    probe = {key: value for key, value in kwargs.items() if key != "pretrained_cfg_overlay"}
    cfg: Any = create_skeleton(name, **probe).pretrained_cfg
    return bool(cfg["fixed_input_size"])


def _of_run(run: Path, requested: str, img_size: ImageSize | None) -> Network:
    from vimamba.cli.runs import find_checkpoint, load_task, read_config
    from vimamba.console import hide_hints

    hide_hints()
    task = load_task(run, find_checkpoint(run, requested))
    net, hparams, data = task.scored_net, task.hparams, read_config(run)["data"]["init_args"]
    size = img_size or hparams.get("img_size") or data.get("img_size")
    if size is None:  # pairs come in any size
        sides = tuple(2 * side for side in net.cell)
    else:
        sides = sides_of(size, len(getattr(net, "cell", (1, 1))))
    return Network(
        net.eval(),
        hparams["model"],
        (hparams["in_chans"], *sides),
        _data_config({"crop_mode": "center", **data} if "crop_pct" in data else data),
        # registration names the labels that it scores, but its network has no classes
        list(task.class_names) if net.num_classes and hasattr(task, "class_names") else None,
        getattr(task, "label_values", None),
        _preprocessing(data),
    )


def _preprocessing(data: dict[str, Any]) -> dict[str, Any] | None:
    """Fields of the preprocessing that a run's settings of data say; None of pairs."""
    from vimamba.data.preprocessing import Preprocessing
    from vimamba.data.volumes.preprocessing import VolumePreprocessing

    if "img_size" not in data:
        return None
    kind = VolumePreprocessing if "spacing" in data else Preprocessing
    return asdict(kind.from_settings(data))


def _data_config(cfg: dict[str, Any]) -> dict[str, Any]:
    names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return {name: cfg[name] for name in names if cfg.get(name) is not None}


def parse_pairs(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, the values read as YAML."""
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--model-kwargs {pair} must have the form NAME=VALUE")
        parsed[name] = yaml.safe_load(value)
    return parsed
