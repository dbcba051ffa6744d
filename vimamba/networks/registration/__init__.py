"""Registration networks, and the warping of images by displacement fields."""

from vimamba.networks.registration.ensemble import RegistrarEnsemble
from vimamba.networks.registration.mambamorph import MambaMorph, VMambaMorph
from vimamba.networks.registration.registrar import Registrar, Registration
from vimamba.networks.registration.warping import (
    compose,
    integrate_velocity,
    jacobian_determinant,
    resize_flow,
    warp,
)

__all__ = [
    "MambaMorph",
    "Registrar",
    "RegistrarEnsemble",
    "Registration",
    "VMambaMorph",
    "compose",
    "integrate_velocity",
    "jacobian_determinant",
    "resize_flow",
    "warp",
]
