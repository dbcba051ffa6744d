"""What tasks share whose networks answer every pixel."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vimamba.tasks.task import FLIPS, Task
from vimamba.tasks.windows import Scene, slide


class DenseTask(Task):
    """A task that answers larger images by windows, blended.

    Attributes:
        sides: Height and width that the network gets; volumes have their depth before them.
        overlap: Part that neighboring windows share, in [0, 1).
        window_batch: Windows at a time.
        advance: Called with the number of windows done and their number in all.
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
        """Logits of the mirrored views that `tta` asks for, mirrored back.

        Args:
            image: (N, C, h, w); two dates stand one after the other in its channels.
            whole: The network takes it at once, whatever its size.
        """
        answer: Any = self.finite_logits if whole else self.windowed
        return [
            answer(image.flip(axes)).flip(axes) if axes else answer(image)
            for axes in FLIPS[self.tta]
        ]
