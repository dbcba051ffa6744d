"""`vimamba explain`: what a network looks at, as pictures and arrays."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimamba import explain as explaining
from vimamba.cli.inquiries import check_destination, make_parser
from vimamba.cli.networks import Network, add_arguments, open_network
from vimamba.console import say, show_table
from vimamba.errors import UsageError
from vimamba.explain import pictures
from vimamba.networks.change import ChangeDetector

HELP = """\
Shows what a network looks at in images:

  cam        where the evidence for a class is: Grad-CAM and related methods
  attention  which tokens the result of a selective scan at a token depends on, for all paths
             together and for each
  erf        effective receptive field of the center of the last map; one picture for all images
  delta      the scans' step sizes: what is written into the state and what is skipped
  paths      the paths of the scans over the image

  vimamba explain runs/photos cat.jpg dog.jpg --out seen
  vimamba explain runs/photos cat.jpg --what cam --target dog --method layercam --out seen
  vimamba explain vmamba_tiny_s1l8 --pretrained cat.jpg --what attention --point 80 120 --out seen
  vimamba explain runs/nuclei cell.png --what cam --target nucleus --out seen

IMAGE_WHAT.png is written for every image, erf.png for all of them, and the arrays next to them, as
IMAGE.npz and erf.npz. For segmentation, the evidence is for the pixels predicted as the class, or
for the pixel at --point. A network that was trained on windows (--data.fit window) sees the window
in the middle of an image, or around --point.
"""
WHATS = ("cam", "attention", "erf", "delta", "paths")
# scans of delta and paths in one picture; the arrays hold all
MOST_LAYERS = 4


def explain(args: list[str]) -> int:
    """Draw explanations; returns the exit code."""
    parser = make_parser("explain", HELP)
    add_arguments(parser)
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    what = "what to explain; default: cam"
    parser.add_argument("--what", nargs="+", choices=WHATS, default=["cam"], help=what)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--target", help="cam: name or number of a class; default: the predicted")
    choices = tuple(explaining.METHODS)
    method = "cam: method; default: gradcam"
    parser.add_argument("--method", choices=choices, default="gradcam", help=method)
    place = "attention: token; cam of a segmentation: pixel; at Y X of the network's input, or of "
    place += "the image if the network was trained on windows"
    parser.add_argument("--point", nargs=2, type=int, metavar=("Y", "X"), help=place)
    parser.add_argument("--layer", help="attention, delta, paths: name of one scan")
    through = "attention: also through all layers, for networks whose blocks share one grid"
    parser.add_argument("--rollout", action="store_true", help=through)
    given = parser.parse_args(args)
    for image in given.images:
        if not image.is_file():
            raise UsageError(f"{image} is not a file")
    check_destination(given.out, folder=True)
    network = open_network(given)
    if len(network.image_size) != 3:
        raise UsageError(f"{network.name} takes volumes; explain is for image networks")
    if isinstance(network.net, ChangeDetector):
        raise UsageError(f"{network.name} takes two dates; explain is for networks of one image")
    names = _names(given.images)
    point = None if given.point is None else tuple(given.point)
    read = [network.read_window(image, point) for image in given.images]
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (image, given.point) in zip(names, read, strict=True):
        arrays: dict[str, NDArray[Any]] = {}
        for what in dict.fromkeys(given.what):
            if what != "erf":
                arrays |= _DRAW[what](network, image, given, given.out / f"{name}_{what}.png")
                rows.append([what, given.out / f"{name}_{what}.png"])
        if arrays:
            np.savez_compressed(given.out / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    if "erf" in given.what:
        rows.append(["erf", given.out / "erf.png"])
        _draw_field(network, torch.stack([image for image, _ in read]), given.out)
    show_table(f"{network.name}: what it looks at", ["what", "picture"], rows)
    return 0


def _draw_field(network: Network, images: Tensor, out: Path) -> None:
    field = explaining.erf(network.net, images)
    pictures.draw_field(field, out / "erf.png")
    radii = {f"radius_{100 * share:.0f}": radius for share, radius in field.radii.items()}
    center = np.asarray(field.center)
    np.savez_compressed(out / "erf.npz", map=field.map, center=center, **radii)  # type: ignore[arg-type]
    for share, radius in field.radii.items():
        say(f"{100 * share:.0f} % of the receptive field is within {radius:.0f} pixels")


def _names(images: list[Path]) -> list[str]:
    """Names of images without their folders; equal ones are numbered."""
    names: list[str] = []
    for image in images:
        same = sum(other.stem == image.stem for other in images[: len(names)])
        names.append(f"{image.stem}_{same + 1}" if same else image.stem)
    return names


def _cam(network: Network, image: Tensor, given: Namespace, path: Path) -> dict[str, NDArray[Any]]:
    target = _class(network, given.target)
    with torch.no_grad():
        logits = network.net(image[None])
    is_dense = isinstance(logits, Tensor) and logits.ndim == 4
    where = given.point if is_dense else None
    made = explaining.cam(network.net, image, target=target, where=where, method=given.method)
    if target is None and not is_dense:
        target = int(logits.argmax(1))
    labels = network.label_names
    label = "" if target is None else f", {labels[target] if labels else f'class {target}'}"
    points = [] if where is None else [where]
    titles = {f"{given.method}{label}": made}
    pictures.draw_maps(image, titles, path, smooth=True, points=points)
    return {"cam": made}


def _class(network: Network, wish: str | None) -> int | None:
    """A class by its name or number."""
    if wish is None or wish.isdecimal():
        return None if wish is None else int(wish)
    labels = network.label_names or []
    if wish not in labels:
        known = ", ".join(labels[:20]) or "a number, since the network has no class names"
        raise UsageError(f"--target {wish} is not a class; choose from {known}")
    return labels.index(wish)


def _attention(
    network: Network, image: Tensor, given: Namespace, path: Path
) -> dict[str, NDArray[Any]]:
    points = [given.point] if given.point else None
    options: dict[str, Any] = {"points": points, "layer": given.layer}
    summed = explaining.attention(network.net, image, **options).sum(0)
    signed = explaining.attention(network.net, image, signed=True, **options).sum(0)
    each = explaining.attention(network.net, image, per_path=True, **options).sum(0)
    maps = {"all paths, absolute": summed, "all paths, signed": signed}
    maps |= {f"path {k}, absolute": values for k, values in enumerate(each)}
    arrays = {"attention": summed, "attention_signed": signed, "attention_paths": each}
    if given.rollout:
        arrays["rollout"] = explaining.rollout(network.net, image, points=points).sum(0)
        maps["roll-out"] = arrays["rollout"]
    pictures.draw_maps(image, maps, path, points=points or [])
    return arrays


def _delta(
    network: Network, image: Tensor, given: Namespace, path: Path
) -> dict[str, NDArray[Any]]:
    found = explaining.delta(network.net, image)
    maps = {
        f"{_short(layer)}, path {k}": values
        for layer in _some(found, given.layer)
        for k, values in enumerate(found[layer])
    }
    pictures.draw_maps(image, maps, path)
    return {f"delta/{layer}": values for layer, values in found.items()}


def _paths(
    network: Network, image: Tensor, given: Namespace, path: Path
) -> dict[str, NDArray[Any]]:
    found = explaining.paths(network.net, image)
    unlike: dict[str, NDArray[Any]] = {}
    for layer, steps in found.items():
        if not any(np.array_equal(steps, other, equal_nan=True) for other in unlike.values()):
            unlike[layer] = steps
    shown = {
        f"{_short(layer)}, path {k}": steps
        for layer in _some(found if given.layer else unlike, given.layer)
        for k, steps in enumerate(found[layer])
    }
    pictures.draw_walks(image, shown, path)
    return {f"paths/{layer}": steps for layer, steps in found.items()}


def _some(found: dict[str, Any], layer: str | None) -> list[str]:
    """The requested layer, or a few from the first to the last.

    Raises:
        UsageError: No layer has this name.
    """
    layers = list(found)
    if layer is not None:
        if layer not in layers:
            raise UsageError(f"--layer {layer} is not a selective scan; choose from {layers}")
        return [layer]
    count = min(len(layers), MOST_LAYERS)
    return [layers[round(i)] for i in np.linspace(0, len(layers) - 1, count)]


def _short(layer: str) -> str:
    """A scan's name without the part that all share."""
    return layer.removesuffix(".scan").removesuffix(".mixer")


_DRAW = {"cam": _cam, "attention": _attention, "delta": _delta, "paths": _paths}
