"""Sliding-window inference for images and volumes larger than a network's input.

Window positions and Gaussian weights are those of MONAI's sliding-window inference. Windows are cut
when they are needed, so a large image never has to be prepared as a whole.

Sizes: N images, C channels, K outputs; *size the two sides of an image, the three of a volume.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

# sigma of the Gaussian weights, relative to a window's side, and the least weight, as in MONAI
SIGMA, LEAST = 0.125, 1e-3


@dataclass(frozen=True)
class Scene:
    """N images of one size whose parts are prepared on demand.

    Attributes:
        size: Pixels along each axis.
        cut: Function from a slice of each axis to (N, C, *part).
    """

    size: tuple[int, ...]
    cut: Callable[..., Tensor]

    @classmethod
    def of(cls, images: Tensor) -> "Scene":
        """A scene of images in memory, (N, C, *size)."""
        both = (slice(None), slice(None))
        return cls(tuple(images.shape[2:]), lambda *parts: images[(*both, *parts)])

    def flip(self, axes: tuple[int, ...]) -> "Scene":
        """The scene flipped along some of its axes, counted from 2."""
        ends = [length if axis in axes else None for axis, length in enumerate(self.size, 2)]

        def cut(*parts: slice) -> Tensor:
            there = (_mirror(part, end) for part, end in zip(parts, ends, strict=True))
            return self.cut(*there).flip(axes)

        return Scene(self.size, cut)


def _mirror(part: slice, end: int | None) -> slice:
    return part if end is None else slice(end - part.stop, end - part.start)


def place_windows(length: int, side: int, overlap: float) -> list[int]:
    """Start positions of windows along one axis; the last one ends at the image's end.

    Args:
        length: Pixels of the image.
        side: Pixels of a window.
        overlap: Overlap of neighbors, a fraction in [0, 1).
    """
    step = max(1, int(side * (1 - overlap)))
    last = max(length - side, 0)
    return [min(start, last) for start in range(0, last + step, step)]


def gaussian_weights(size: Sequence[int]) -> Tensor:
    """Weights of a window's pixels, (*size) float32, largest in the center."""
    weights = torch.ones((), dtype=torch.float32, device="cpu")
    for side in size:
        x = torch.arange(side, dtype=torch.float32, device="cpu") - (side - 1) / 2
        weights = weights[..., None] * torch.exp(-(x**2) / (2 * (SIGMA * side) ** 2))
    return weights.clamp(min=LEAST)


def slide(
    scene: Scene,
    net: Callable[[Tensor], Tensor],
    size: Sequence[int],
    *,
    overlap: float,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int, int], None] | None = None,
    room: Callable[[tuple[int, ...]], Tensor] | None = None,
) -> Tensor:
    """Outputs for whole images from a network that takes images of one size.

    Args:
        scene: The images; smaller ones are padded with zeros on all sides.
        net: (n, C, *size) to (n, K, *size).
        size: Size of a window, pixels along each axis.
        overlap: Overlap of neighboring windows, a fraction in [0, 1).
        batch_size: Windows at a time, at least.
        device: Device of the network.
        advance: Called with the number of windows done and their total number.
        room: Allocates the float32 zeros of a shape, on `device`, in which the outputs are summed.

    Returns:
        (N, K, *size) float32.
    """
    whole = [max(n, side) for n, side in zip(scene.size, size, strict=True)]
    first = [(long - n) // 2 for long, n in zip(whole, scene.size, strict=True)]
    padding: list[int] = []
    for long, n, start in zip(whole, scene.size, first, strict=True):
        padding = [start, long - n - start, *padding]  # in the order of `pad`, the last axis first
    weights = gaussian_weights(size).to(device)
    starts = (place_windows(n, side, overlap) for n, side in zip(scene.size, size, strict=True))
    places = list(product(*starts))
    room = room or (lambda shape: torch.zeros(shape, dtype=torch.float32, device=device))
    total = room(tuple(whole))
    blended, done = None, 0
    both = (slice(None), slice(None))
    while done < len(places):
        cuts: list[Tensor] = []
        group: list[tuple[slice, ...]] = []
        for place in places[done:]:
            sides = list(zip(place, size, scene.size, strict=True))
            part = scene.cut(*(slice(at, min(at + side, n)) for at, side, n in sides))
            cuts.append(F.pad(part.to(device), padding))
            group.append(tuple(slice(at, at + side) for at, side, _ in sides))
            if sum(map(len, cuts)) >= batch_size:
                break
        outputs = net(torch.cat(cuts)).float() * weights
        if blended is None:
            blended = room((len(cuts[0]), outputs.shape[1], *whole))
        for where, output in zip(group, outputs.split(len(cuts[0])), strict=True):
            blended[(*both, *where)] += output.to(blended.device)
            total[where] += weights.to(total.device)
        done += len(group)
        if advance is not None:
            advance(done, len(places))
    assert blended is not None
    blended /= total
    inner = (slice(start, start + n) for start, n in zip(first, scene.size, strict=True))
    return blended[(*both, *inner)]
