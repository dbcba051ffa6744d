"""Base class of all registration networks.

Every network pads its images with zeros at the end of each axis to whole cells of its coarsest map
and crops its outputs, so any size works.
"""

from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from vimamba.layers import crop, pad_to_cells
from vimamba.networks.network import Network


class Registration(NamedTuple):
    """The output of a network for a pair of images.

    Attributes:
        moved: (N, C, *grid), the moving image at the fixed one's cells.
        flow: (N, n, *grid), the displacement from each cell of the fixed image to its position in
            the moving one: component c is along axis c, in cells; `warp(moving, flow)` is `moved`.
        velocity: The stationary velocity that was integrated to `flow`, for the smoothness loss: of
            the same shape, or half the resolution. `flow` itself if the network does not integrate;
            that of the last pass if there are several.
        features: (N, 2 F, *half) of the moving and the fixed image, for the contrastive loss; None
            if the network has none.
    """

    moved: Tensor
    flow: Tensor
    velocity: Tensor
    features: Tensor | None = None


# exported programs write down what they return
_register_namedtuple(Registration, serialized_type_name="vimamba.Registration")


class Registrar(Network):
    """Two images or volumes in, the displacement that aligns the first to the second out.

    Args:
        cell: Pixels per cell of the coarsest map, for each spatial dimension.
        in_chans: Channels of either image.
        pretrained_cfg: See `Network`.

    Attributes:
        stack: How many images stand in one tensor (N, 2, C, *grid), for exported files.
        squarings: `steps` of `integrate_velocity` by which `velocity` gives `flow`; 0 if that is
            not the integral of one velocity.
    """

    stack: ClassVar[tuple[int, ...]] = (2,)
    # minimum cells per side of the coarsest map
    fewest_cells = 1
    squarings = 0

    def __init__(
        self, cell: tuple[int, ...], *, in_chans: int, pretrained_cfg: dict[str, Any]
    ) -> None:
        super().__init__(in_chans, pretrained_cfg=pretrained_cfg)
        self.cell = cell

    def register(self, moving: Tensor, fixed: Tensor) -> Registration:
        """As `forward`, for images (N, C, *grid) padded to whole cells."""
        raise NotImplementedError

    def forward(self, moving: Tensor, fixed: Tensor | None = None) -> Registration:
        """Two images (N, C, *grid) of one size, registered.

        Args:
            moving: The one to move; or both in one tensor (N, 2, C, *grid).
            fixed: The one to lay it onto; None if `moving` has both.

        Raises:
            ValueError: They differ in shape, or have the wrong number of dimensions or channels.
        """
        if fixed is None:
            if moving.ndim != len(self.cell) + 3 or moving.shape[1] != 2:
                raise ValueError(
                    f"moving of shape {tuple(moving.shape)} without fixed must be both images, "
                    f"(N, 2, C) and {len(self.cell)} axes of space"
                )
            moving, fixed = moving.unbind(1)
        if (
            moving.ndim != len(self.cell) + 2
            or moving.shape != fixed.shape
            or moving.shape[1] != self.in_chans
        ):
            raise ValueError(
                f"moving={tuple(moving.shape)} and fixed={tuple(fixed.shape)} must be batches of "
                f"one shape with {self.in_chans} channels and {len(self.cell)} spatial axes"
            )
        size = moving.shape[2:]
        moving, fixed = (
            pad_to_cells(x, list(self.cell), self.fewest_cells) for x in (moving, fixed)
        )
        padded = moving.shape[2:]
        moved, flow, velocity, features = self.register(moving, fixed)
        moved, flow, velocity = (crop(x, size, padded) for x in (moved, flow, velocity))
        features = None if features is None else crop(features, size, padded)
        return Registration(moved, flow, velocity, features)
