"""Several registration networks as one: the mean of their fields.

The mean of displacements may fold even if none of them does. Where every network integrates one
stationary velocity, the velocities are averaged and their mean is integrated, which is the mean of
the deformations on the logarithmic scale (Arsigny et al. 2006, MICCAI) and does not fold if smooth.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vimamba.networks.registration.registrar import Registrar, Registration
from vimamba.networks.registration.warping import integrate_velocity, resize_flow, warp


class RegistrarEnsemble(Registrar):
    """The mean of the velocities, or of the displacements, of several networks.

    Args:
        networks: Networks for images of the same channels and axes.

    Attributes:
        rule: How the fields are averaged, in words.

    Raises:
        ValueError: They differ in channels or axes, or there are none.
    """

    def __init__(self, networks: Sequence[Registrar]) -> None:
        kinds = {(net.in_chans, len(net.cell)) for net in networks}
        if len(kinds) != 1:
            raise ValueError(
                f"networks must be for the same channels and axes, and at least one; got {kinds}"
            )
        cell = tuple(math.lcm(*sides) for sides in zip(*(n.cell for n in networks), strict=True))
        first = networks[0]
        super().__init__(cell, in_chans=first.in_chans, pretrained_cfg=first.pretrained_cfg)
        self.fewest_cells = max(net.fewest_cells for net in networks)
        self.networks = nn.ModuleList(networks)
        steps = [net.squarings for net in networks]
        self.squarings = max(steps) if all(steps) else 0
        velocities = "the mean of their velocities, integrated"
        self.rule = velocities if self.squarings else "the mean of their displacements"

    def register(self, moving: Tensor, fixed: Tensor) -> Registration:
        """See `Registrar.register`."""
        found = [net.register(moving, fixed) for net in self.networks]  # type: ignore[operator]
        if not self.squarings:
            flow = torch.stack([one.flow for one in found]).mean(0)
            return Registration(warp(moving, flow), flow, flow)
        velocity = mean_velocity([one.velocity for one in found])
        flow = integrate_velocity(velocity, self.squarings)
        if flow.shape[2:] != moving.shape[2:]:
            flow = resize_flow(flow, moving.shape[2] / flow.shape[2])
        return Registration(warp(moving, flow), flow, velocity)


def mean_velocity(velocities: Sequence[Tensor]) -> Tensor:
    """The mean of velocities (N, n, *grid), at the resolution of the finest."""
    finest = max(velocity.shape[2] for velocity in velocities)
    at_finest = [
        v if v.shape[2] == finest else resize_flow(v, finest / v.shape[2]) for v in velocities
    ]
    return torch.stack(at_finest).mean(0)
