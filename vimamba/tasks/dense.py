"""Shared code of tasks with dense predictions."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from vimamba.tasks.task import FLIPS, Task
from vimamba.tasks.windows import Scene, slide


class DenseTask(Task):
    """A task that predicts larger images in blended windows.

    Attributes:
        flips: Axes to mirror for each view, by the name of the choice.
        sides: Height and width that the network gets; volumes have their depth before them.
        overlap: Part that neighboring windows share, in [0, 1).
        window_batch: Windows at a time.
        advance: Called with the number of windows done and their total number.
    """

    flips: ClassVar[dict[str, list[tuple[int, ...]]]] = FLIPS
    sides: tuple[int, ...]
    overlap: float
    window_batch = 4
    advance: Callable[[int, int], None] | None = None

    def windowed(self, image: Tensor | Scene) -> Tensor:
        """(N, C, h, w) to logits of that size, in windows unless it is the network's own size.

        Raises:
            NotFiniteError: A logit is not finite.
        """
        if isinstance(image, Tensor) and image.shape[2:] == self.sides:
            return self.finite_logits(image)
        return self.slide(image, self.finite_logits)

    def slide(self, image: Tensor | Scene, net: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, C, *size) to the blended logits of that size of its windows."""
        return slide(
            Scene.of(image) if isinstance(image, Tensor) else image,
            net,
            self.sides,
            overlap=self.overlap,
            batch_size=self.window_batch,
            device=self.device,
            advance=self.advance,
            room=self.room,
        )

    def room(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros that the logits of windows are summed in."""
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def view(self, image: Tensor | Scene, axes: tuple[int, ...]) -> Tensor:
        """Logits of an image mirrored along some axes, in windows, mirrored back."""
        return mirrored(self.windowed, axes)(image)

    def views(self, image: Tensor | Scene, *, whole: bool = False) -> list[Tensor]:
        """Logits of the flipped views requested by `tta`, flipped back.

        Args:
            image: (N, C, *size); two dates are concatenated along the channels.
            whole: The network takes it at once, regardless of its size.
        """
        if whole:
            return [mirrored(self.finite_logits, axes)(image) for axes in self.flips[self.tta]]
        return [self.view(image, axes) for axes in self.flips[self.tta]]


def mirrored(function: Callable[[Any], Tensor], axes: tuple[int, ...]) -> Callable[[Any], Tensor]:
    """A function of images that are flipped along some axes, with outputs flipped back."""
    if not axes:
        return function
    return lambda image: function(image.flip(axes)).flip(axes)
