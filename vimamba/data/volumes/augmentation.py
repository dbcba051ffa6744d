"""Random augmentation of patches with MONAI, similar to nnU-Net's.

Sizes: C channels, d x h x w voxels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Patch = tuple[NDArray[np.float32], NDArray[np.uint8]]


@dataclass(frozen=True)
class VolumeAugmentation:
    """Probabilities of the changes; 0 disables one.

    Attributes:
        flip: Flip along each axis; use 0 if left and right matter.
        turn: Rotation and scaling.
        degrees: Largest rotation about the slice axis; a third of it about the others.
        scale: Largest change of scale, as a fraction.
        noise: Gaussian noise.
        blur: Gaussian blur.
        brightness: Brightness factor of 0.75 to 1.25.
        contrast: Contrast factor of 0.75 to 1.25.
        gamma: Gamma of 0.7 to 1.5.
        low_resolution: Downsampling and upsampling again.
    """

    flip: float = 0.5
    turn: float = 0.2
    degrees: float = 30.0
    scale: float = 0.2
    noise: float = 0.1
    blur: float = 0.1
    brightness: float = 0.15
    contrast: float = 0.15
    gamma: float = 0.15
    low_resolution: float = 0.1


DEFAULT_VOLUME_AUGMENTATION = VolumeAugmentation()


def make_transform(settings: VolumeAugmentation) -> Callable[[Patch, int], Patch]:
    """Build a function of a patch and a seed.

    The result depends on the seed only: MONAI's own random states would depend on the worker.
    """
    from monai.transforms.compose import Compose
    from monai.transforms.intensity import dictionary as intensity
    from monai.transforms.spatial import dictionary as spatial

    both, image = ["image", "mask"], ["image"]
    about = np.deg2rad(settings.degrees)
    steps: list[Any] = [
        spatial.RandAffined(
            both,
            prob=settings.turn,
            rotate_range=(about, about / 3, about / 3),
            scale_range=(settings.scale,) * 3,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        *(spatial.RandFlipd(both, settings.flip, axis) for axis in range(3)),
        intensity.RandGaussianNoised(image, settings.noise, std=0.1),
        intensity.RandGaussianSmoothd(
            image, (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=settings.blur
        ),
        intensity.RandScaleIntensityd(image, 0.25, prob=settings.brightness),
        intensity.RandScaleIntensityFixedMeand(
            image, prob=settings.contrast, factors=0.25, fixed_mean=True
        ),
        intensity.RandAdjustContrastd(
            image, prob=settings.gamma, gamma=(0.7, 1.5), retain_stats=True
        ),
        spatial.RandSimulateLowResolutiond(
            image, prob=settings.low_resolution, zoom_range=(0.5, 1.0)
        ),
    ]
    whole = Compose(steps)

    def transform(patch: Patch, seed: int) -> Patch:
        whole.set_random_state(seed=seed)
        found: Any = whole({"image": patch[0], "mask": patch[1][None].astype(np.float32)})
        # convert from MetaTensor, with which networks are many times slower
        changed, mask = (found[key].as_tensor().numpy() for key in both)
        return changed.astype(np.float32), np.rint(mask[0]).astype(np.uint8)

    return transform
