"""The weights of the registration losses, in a module that does not need MONAI."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RegistrationObjective:
    """What is minimized; a weight of 0 disables a loss.

    Attributes:
        ncc: Weight of the local normalized cross-correlation of the images.
        mse: Weight of the mean squared difference of the images.
        dice: Weight of the soft Dice loss of warped labels; needs labels of both images.
        gradient: Weight of the velocity's squared gradient.
        bending: Weight of the displacement's bending energy.
        contrastive: Weight of the contrastive loss of the features; needs labels of both images
            and a network with features.
        ncc_window: Side of the window of `ncc` in cells, odd.
    """

    ncc: float = 1.0
    mse: float = 0.0
    dice: float = 0.0
    gradient: float = 1.0
    bending: float = 0.0
    contrastive: float = 0.0
    ncc_window: int = 9


DEFAULT_REGISTRATION_OBJECTIVE = RegistrationObjective()
