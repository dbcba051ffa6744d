"""Images larger than a network's input: cut into windows that overlap, and blended again.

The windows lie as MONAI's sliding-window inference lays them and have its Gaussian weights. They
are cut when their turn comes, so that a large image never has to be prepared as a whole.

Sizes: N images, C channels, K outputs, H x W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# of the Gaussian weights, as part of a window's side, and the least weight; both as in MONAI
SIGMA, LEAST = 0.125, 1e-3


@dataclass(frozen=True)
class Scene:
    """N images of one size whose parts are prepared when they are asked for.

    Attributes:
        size: Height and width.
        cut: Rows and columns to (N, C, h, w).
    """

    size: tuple[int, int]
    cut: Callable[[slice, slice], Tensor]

    @classmethod
    def of(cls, images: Tensor) -> "Scene":
        """Images that are all there, (N, C, H, W)."""
        height, width = images.shape[2:]
        return cls((height, width), lambda rows, columns: images[:, :, rows, columns])

    def flip(self, axes: tuple[int, ...]) -> "Scene":
        """The same mirrored along some of the axes 2 (rows) and 3 (columns)."""
        ends = [length if axis in axes else None for axis, length in enumerate(self.size, 2)]

        def cut(*parts: slice) -> Tensor:
            there = (_mirror(part, end) for part, end in zip(parts, ends, strict=True))
            return self.cut(*there).flip(axes)

        return Scene(self.size, cut)


def _mirror(part: slice, end: int | None) -> slice:
    return part if end is None else slice(end - part.stop, end - part.start)


def place_windows(length: int, side: int, overlap: float) -> list[int]:
    """Where windows begin along one axis; the last one ends at the image's end.

    Args:
        length: Pixels of the image.
        side: Pixels of a window.
        overlap: Part that neighbors share, in [0, 1).
    """
    step = max(1, int(side * (1 - overlap)))
    last = max(length - side, 0)
    return [min(start, last) for start in range(0, last + step, step)]


def gaussian_weights(size: Sequence[int]) -> Tensor:
    """Weights of a window's pixels, (height, width) float32, greatest in its middle."""
    lines = []
    for side in size:
        x = torch.arange(side, dtype=torch.float32, device="cpu") - (side - 1) / 2
        lines.append(torch.exp(-(x**2) / (2 * (SIGMA * side) ** 2)))
    return (lines[0][:, None] * lines[1][None]).clamp(min=LEAST)


def slide(
    scene: Scene,
    net: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    *,
    overlap: float,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Outputs of whole images from a network that takes images of one size.

    Args:
        scene: The images; smaller ones are padded with zeros all round.
        net: (n, C, h, w) to (n, K, h, w).
        size: Height and width of a window, pixels.
        overlap: Part that neighboring windows share, in [0, 1).
        batch_size: Windows at a time, at least.
        device: Of the network.
        advance: Called with the number of windows done and their number in all.

    Returns:
        (N, K, H, W) float32.
    """
    (height, width), (h, w) = scene.size, size
    tall, wide = max(height, h), max(width, w)
    top, left = (tall - height) // 2, (wide - width) // 2
    padding = (left, wide - width - left, top, tall - height - top)
    weights = gaussian_weights(size).to(device)
    places = [
        (row, column)
        for row in place_windows(height, h, overlap)
        for column in place_windows(width, w, overlap)
    ]
    total = torch.zeros((tall, wide), dtype=torch.float32, device=device)
    blended, done = None, 0
    while done < len(places):
        cuts: list[Tensor] = []
        group: list[tuple[slice, slice]] = []
        for row, column in places[done:]:
            part = scene.cut(
                slice(row, min(row + h, height)), slice(column, min(column + w, width))
            )
            cuts.append(F.pad(part.to(device), padding))
            group.append((slice(row, row + h), slice(column, column + w)))
            if sum(map(len, cuts)) >= batch_size:
                break
        outputs = net(torch.cat(cuts)).float() * weights
        if blended is None:
            shape = (len(cuts[0]), outputs.shape[1], tall, wide)
            blended = torch.zeros(shape, device=device, dtype=torch.float32)
        for (rows, columns), output in zip(group, outputs.split(len(cuts[0])), strict=True):
            blended[:, :, rows, columns] += output
            total[rows, columns] += weights
        done += len(group)
        if advance is not None:
            advance(done, len(places))
    assert blended is not None
    blended /= total
    return blended[:, :, top : top + height, left : left + width]
