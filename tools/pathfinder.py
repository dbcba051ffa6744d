"""Writes a data set of long-range dependencies: python tools/pathfinder.py FOLDER.

Every image has two long dashed curves, short distractor curves, and two discs at ends of the long
curves: of the same curve in the class `same`, of different curves in `different` (after Pathfinder,
Linsley et al. 2018, arXiv:1805.08315, whose images are larger). The only way to distinguish the
classes is to follow a curve from one disc to the other: both classes have the same number of
dashes, and the same distance between the discs.
"""

import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vimamba.files import write_folder

CLASSES = ("different", "same")
# scale at which images are drawn before they are downsampled, for smooth edges
SCALE = 4
# of the curves: pixels per dash and per gap, and maximum turn of a dash in radians
DASH, GAP, BEND, SPACING = 3.0, 1.5, 0.5, 0.75
# pixels between two curves, and radius of a disc
CLEARANCE, DISC = 3.0, 1.8
# maximum difference between the classes in the distance of the discs, pixels
ALIKE = 3.0
TRIES = 300
# number of candidate curves
AT_ONCE = 128
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """The contents of an image.

    Attributes:
        curves: Ends of the dashes, (dashes, 2, 2) each, x before y: the two long ones first.
        discs: (2, 2) centers.
    """

    curves: Sequence[Points]
    discs: Points


def walk(rng: np.random.Generator, size: int, dashes: int) -> Points:
    """Curves of dashes that turn slightly at each dash: those of `AT_ONCE` that stay in the image.

    Returns:
        (curves, dashes, 2, 2) ends of the dashes.
    """
    margin = DISC + 1
    place = rng.uniform(margin, size - margin, (AT_ONCE, 2))
    heading, turn = rng.uniform(0, 2 * np.pi, AT_ONCE), np.zeros(AT_ONCE)
    ends = []
    for _ in range(dashes):
        turn = 0.5 * turn + rng.uniform(-BEND, BEND, AT_ONCE)
        heading = heading + turn.clip(-BEND, BEND)
        step = np.stack([np.cos(heading), np.sin(heading)], axis=1)
        ends.append(np.stack([place, place + DASH * step], axis=1))
        place = place + (DASH + GAP) * step
    curves = np.stack(ends, axis=1)
    inside = (curves >= margin) & (curves <= size - margin)
    return curves[inside.all((1, 2, 3))]


def along(curve: Points) -> Points:
    """Points on a curve, including gaps, `SPACING` apart."""
    place = np.concatenate([np.arange(0, DASH + GAP, SPACING) for _ in curve])
    dash = np.repeat(np.arange(len(curve)), len(place) // len(curve))
    start, end = curve[dash, 0], curve[dash, 1]
    return start + (end - start) * (place / DASH)[:, None]


def is_clear(curve: Points, others: Sequence[Points]) -> bool:
    """Whether a curve stays away from others and from its own earlier parts."""
    points = along(curve)
    for other in others:
        if np.linalg.norm(points[:, None] - along(other), axis=-1).min() < CLEARANCE:
            return False
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    number = np.arange(len(points))
    # neighbors on the curve are always close; a loop comes close to much earlier points
    behind = np.abs(number[:, None] - number) * SPACING > 3 * CLEARANCE
    return not (apart[behind] < CLEARANCE).any()


def add_curve(curves: list[Points], found: Points) -> int | None:
    """Add the first of some curves that does not touch others; its index, None if there is none."""
    for place, curve in enumerate(found):
        if is_clear(curve, curves):
            curves.append(curve)
            return place
    return None


def far_ends(first: Points, found: Points) -> tuple[Points, Points]:
    """The curves whose ends are as far from the start of `first` as the end of `first` is.

    Args:
        first: (dashes, 2, 2).
        found: (curves, dashes, 2, 2).

    Returns:
        The curves, and the end of each, (curves, 2).
    """
    start, end = first[0, 0], first[-1, 1]
    ends = np.stack([found[:, 0, 0], found[:, -1, 1]], axis=1)
    excess = np.abs(np.linalg.norm(ends - start, axis=-1) - np.linalg.norm(end - start))
    nearest = excess.argmin(1)
    rows = np.flatnonzero(excess.min(1) <= ALIKE)
    return found[rows], ends[rows, nearest[rows]]


def make_scene(
    rng: np.random.Generator, size: int, dashes: int, distractors: int, *, same: bool
) -> Scene:
    """Two long curves with discs, and short ones.

    Args:
        rng: Generator for this image only.
        size: Side, pixels.
        dashes: Dashes per long curve; short ones have a third.
        distractors: Number of short curves.
        same: Put both discs on one curve.

    Raises:
        SystemExit: The curves do not fit.
    """
    short = max(2, dashes // 3)
    for _ in range(TRIES):
        curves: list[Points] = []
        if add_curve(curves, walk(rng, size, dashes)) is None:
            continue
        found, others = far_ends(curves[0], walk(rng, size, dashes))
        place = add_curve(curves, found)
        if place is None:
            continue
        if all(add_curve(curves, walk(rng, size, short)) is not None for _ in range(distractors)):
            second = curves[0][-1, 1] if same else others[place]
            return Scene(curves, np.stack([curves[0][0, 0], second]))
    raise SystemExit(
        f"{dashes} dashes and {distractors} distractors do not fit into {size} pixels; "
        "give a larger --size, or fewer"
    )


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """The scene in grayscale, white on black."""
    picture = Image.new("L", (size * SCALE, size * SCALE))
    pen = ImageDraw.Draw(picture)
    for curve in scene.curves:
        for start, end in curve * SCALE:
            pen.line([*start, *end], fill=255, width=SCALE)
    for x, y in scene.discs * SCALE:
        reach = DISC * SCALE
        pen.ellipse([x - reach, y - reach, x + reach, y + reach], fill=255)
    return picture.resize((size, size), Image.Resampling.BOX)


def write_images(
    folder: Path, *, count: int, size: int, dashes: int, distractors: int, seed: int
) -> None:
    """Write `count` images of each class; the same arguments give the same files.

    Args:
        folder: Folder for `CLASS/NUMBER.png`, written completely or not at all.
        count: Images of each class.
        size: Side, pixels.
        dashes: Dashes per long curve.
        distractors: Number of short curves.
        seed: Seed from which those of all images are derived.
    """
    with write_folder(folder) as part:
        for label, name in enumerate(CLASSES):
            (part / name).mkdir()
            for number in range(count):
                rng = np.random.default_rng([seed, label, number])
                scene = make_scene(rng, size, dashes, distractors, same=bool(label))
                draw_scene(scene, size).save(part / name / f"{number:05}.png")


def main(args: Sequence[str] | None = None) -> int:
    """Read the options and write the folder."""
    parser = ArgumentParser(
        description="Write images with two curves: are the discs on the same one?",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="to write")
    parser.add_argument("--count", type=int, default=1000, help="images of each class")
    parser.add_argument("--size", type=int, default=32, help="side of the images, pixels")
    parser.add_argument("--dashes", type=int, default=6, help="of each of the two long curves")
    parser.add_argument("--distractors", type=int, default=2, help="number of short curves")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(args)
    options = {name: value for name, value in vars(given).items() if name != "folder"}
    write_images(given.folder, **options)
    print(f"{2 * given.count} images of {' and '.join(CLASSES)} written to {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
