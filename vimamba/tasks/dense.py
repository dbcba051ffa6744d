"""Shared code of tasks with dense predictions."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vimamba.tasks.task import FLIPS, Task
from vimamba.tasks.windows import Scene, slide


class DenseTask(Task):
    """A task that predicts larger images in blended windows.

    Attributes:
        sides: Height and width of the network's input; for volumes depth, height and width.
        overlap: Overlap of neighboring windows, a fraction in [0, 1).
        window_batch: Windows at a time.
        advance: Called with the number of windows done and their total number.
    """

    sides: tuple[int, ...]
    overlap: float
    window_batch = 4
    advance: Callable[[int, int], None] | None = None

    def windowed(self, image: Tensor | Scene) -> Tensor:
        """(N, C, h, w) to logits of that size, in windows unless it is the network's own size.

        Raises:
            NotFiniteError: A logit is not finite.
        """
        if isinstance(image, Tensor):
            if image.shape[2:] == self.sides:
                return self.finite_logits(image)
            image = Scene.of(image)
        return slide(
            image,
            self.finite_logits,
            self.sides,
            overlap=self.overlap,
            batch_size=self.window_batch,
            device=self.device,
            advance=self.advance,
        )

    def views(self, image: Tensor | Scene, *, whole: bool = False) -> list[Tensor]:
        """Logits of the flipped views requested by `tta`, flipped back.

        Args:
            image: (N, C, h, w); two dates are concatenated in its channels.
            whole: Run the network on the whole image, whatever its size.
        """
        answer: Any = self.finite_logits if whole else self.windowed
        return [
            answer(image.flip(axes)).flip(axes) if axes else answer(image)
            for axes in FLIPS[self.tta]
        ]
