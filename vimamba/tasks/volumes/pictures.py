"""Pictures of volumes: three planes through the middle of the foreground.

Sizes: D x H x W voxels, C channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vimamba.data import VolumeCase, VolumeData, VolumePreprocessing
from vimamba.labels import IGNORE
from vimamba.tasks.overlays import class_colors, legend_entries, panel
from vimamba.tasks.pictures import STYLE, save, shorten, show_image
from vimamba.tasks.segmentation.pictures import LONGEST, add_legend, view_of

PLANES = ("axial", "coronal", "sagittal")
Plane = tuple[str, NDArray, NDArray, float]


def choose_places(classes: NDArray[np.uint8], *, background: bool) -> list[int]:
    """The slice along each axis with the most foreground; else the middle one."""
    inside = (classes >= int(background)) & (classes != IGNORE)
    if not inside.any() or inside.all():
        return [n // 2 for n in classes.shape]
    return [int(inside.sum(axis).argmax()) for axis in ((1, 2), (0, 2), (0, 1))]


def three_planes(
    prepare: VolumePreprocessing,
    case: VolumeCase,
    classes: NDArray[np.uint8],
    places: Sequence[int],
) -> list[Plane]:
    """Axial, coronal and sagittal plane, the head up: caption, image in [0, 1], classes and aspect.

    Args:
        prepare: From stored values to the image's.
        case: The volume.
        classes: (D, H, W).
        places: Positions of the planes along each axis.
    """
    deep, tall, wide = case.spacing
    aspects = (tall / wide, deep / wide, deep / tall)
    found = []
    for axis, (name, place, aspect) in enumerate(zip(PLANES, places, aspects, strict=True)):
        where = tuple(slice(place, place + 1) if axis == i else slice(None) for i in range(3))
        shown = np.take(classes, place, axis)
        pixels = prepare.pixels(case.part(*where)).reshape(*shown.shape, -1)
        up = slice(None, None, -1) if axis else slice(None)  # slices begin at the feet
        caption = f"{name} {place + 1} of {classes.shape[axis]}"
        found.append((caption, pixels[up], shown[up], aspect))
    return found


def draw_cases(data: VolumeData, path: Path, rows: int = 4) -> None:
    """Training cases with their masks in three planes.

    Args:
        data: The data set.
        path: PNG to write.
        rows: Cases to show.
    """
    order = np.random.default_rng(0).permutation(len(data.items("train")))[:rows]
    cases = [data.items("train")[int(index)] for index in order]
    shown = [(case, case.classes(data.table)) for case in cases]
    _draw_planes(data, path, "Training cases: masks in three planes", shown)


def draw_predictions(task: Any, data: VolumeData, split: str, path: Path, *, rows: int = 3) -> None:
    """Truth and prediction of some cases, in three planes.

    Args:
        task: The task.
        data: The data set.
        split: Split to show.
        path: PNG to write.
        rows: Cases to show.
    """
    import torch

    task.eval()
    dataset: Any = data.dataset(split)
    cases = data.items(split)[:rows]
    shown = []
    for index, case in enumerate(cases):
        image, mask, *_ = dataset[index]
        with torch.inference_mode():
            found = task.classes(task.views(image[None]), mask.shape)[0]
        shown.append((case, mask.numpy(), found))
    _draw_planes(data, path, f"{split} cases: truth above, prediction below", shown)


def _draw_planes(data: VolumeData, path: Path, title: str, shown: Sequence[Any]) -> None:
    """A row of three planes for each mask of each case; all masks of a case in the same planes."""
    colors = class_colors(data.num_classes, data.background)
    legend = legend_entries(data.class_names, colors, data.background)
    rows: list[tuple[VolumeCase, list[Plane]]] = []
    for case, *masks in shown:
        places = choose_places(masks[0], background=data.background)
        rows += [(case, three_planes(data.preprocessing, case, mask, places)) for mask in masks]
    view, note = view_of(data, [image for _, planes in rows for _, image, *_ in planes])
    look: dict[str, Any] = {"colors": colors, "background": data.background, "longest": LONGEST}
    count = len(rows)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(8, 2.3 * count + 1.2), layout="constrained")
        figure.suptitle(title, fontsize=11, fontweight="bold")
        grid = figure.subplots(count, len(PLANES), squeeze=False)
        for row, (case, planes) in zip(grid, rows, strict=True):
            for axes, (caption, image, classes, aspect) in zip(row, planes, strict=True):
                text = f"{shorten(Path(case.name).name, 18)}: {caption}"
                show_image(axes, panel(view(image), classes, **look, aspect=aspect), text)
        add_legend(figure, legend, ignored=False, title=note)
        save(figure, path)
