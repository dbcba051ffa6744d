import dataclasses

import numpy as np
import pytest

from tests.documents import read
from vimamba.data import MaskedAugmentation
from vimamba.data.masked.augmentation import PRESETS, train_mask_transform

STILL = {"crop": 1, "aspect": 1, "hflip": 0, "color": 0}
CHANGES = {
    "resize": {},
    "crop": {"crop": 0.6, "aspect": 1.2},
    "scale": {"scale": (0.5, 2.0)},
    "flips": {"hflip": 0.5, "vflip": 0.5, "rotate90": 1},
    "affine": {"rotate": 15, "shift": 0.05, "zoom": 0.1},
    "elastic": {"elastic": 1},
}


def square():
    mask = np.zeros((40, 48), dtype=np.uint8)
    mask[14:26, 18:30] = 1
    return mask.astype(np.float32)[..., None].repeat(3, 2), mask


def center(values):
    return (np.indices(values.shape) * values).sum((1, 2)) / values.sum()


@pytest.mark.parametrize("fit", ["squash", "window"])
@pytest.mark.parametrize("name", CHANGES)
def test_masks_stay_in_step_with_images_to_a_fraction_of_a_pixel(name, fit):
    augmentation = MaskedAugmentation(**{**STILL, **CHANGES[name]})
    transform = train_mask_transform(augmentation, 32 if fit == "squash" else 96, 3, fit=fit)
    away = []
    for seed in range(60):
        image, mask = transform(*square(), seed)
        drawn = (mask == 1).astype(float)
        edges = [drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]]
        if drawn.sum() > 20 and not np.concatenate(edges).any():
            away.append(center(image[..., 0].astype(float)) - center(drawn))
    assert len(away) > 10
    # individual masks are rounded to whole pixels; the mean must be zero
    assert np.abs(np.mean(away, 0)).max() < 0.1


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_every_preset_works_with_any_channels(preset, channels):
    rng = np.random.default_rng(0)
    pixels = rng.random((50, 60, channels), dtype=np.float32)
    mask = rng.integers(0, 4, (50, 60), dtype=np.uint8)
    for fit in ("squash", "window"):
        transform = train_mask_transform(PRESETS[preset], 32, channels, fit=fit)
        for seed in range(12):
            image, drawn = transform(pixels.copy(), mask.copy(), seed)
            assert image.shape == (32, 32, channels)
            assert image.dtype == np.float32
            assert drawn.shape == (32, 32)
            assert set(np.unique(drawn)) <= {0, 1, 2, 3, 255}
            assert image.min() >= 0
            assert image.max() <= 1


def test_small_images_are_padded_with_ignored_pixels():
    augmentation = MaskedAugmentation(**STILL)
    _, mask = train_mask_transform(augmentation, 64, 3, fit="window")(*square(), 0)
    assert mask.shape == (64, 64)
    assert (mask == 255).sum() == 64 * 64 - 40 * 48


def test_windows_are_laid_around_labeled_pixels():
    mask = np.zeros((200, 200), dtype=np.uint8)
    mask[100:104, 150:154] = 1
    image = np.zeros((200, 200, 1), dtype=np.float32)
    augmentation = MaskedAugmentation(**STILL, foreground=1.0)
    transform = train_mask_transform(augmentation, 32, 1, fit="window")
    assert all((transform(image, mask, seed)[1] == 1).any() for seed in range(10))


def test_the_table_of_the_presets_has_the_numbers_of_the_code():
    page = read("docs/segmentation.md").split("## Augmentation")[1].split("\n## ")[0]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ")
    ]
    names = table[0][1:]
    assert set(names) == set(PRESETS)

    def written(value):
        return " to ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"

    expected = [
        [f"`{field.name}`", *(written(getattr(PRESETS[name], field.name)) for name in names)]
        for field in dataclasses.fields(MaskedAugmentation)
    ]
    assert table[1:] == expected


@pytest.mark.parametrize("fit", ["squash", "window"])
def test_the_preset_for_scans_leaves_left_left_and_up_up(fit):
    mask = np.zeros((64, 64), np.uint8)
    mask[:26, :26], mask[:26, 38:], mask[38:, :26] = 1, 2, 3
    image = np.repeat(mask[..., None] / np.float32(3), 1, axis=2)
    change = train_mask_transform(PRESETS["medical"], 64, 1, fit=fit)

    def middle(found, value):
        return np.argwhere(found == value).mean(0) if (found == value).sum() > 20 else None

    seen = 0
    for seed in range(40):
        _, found = change(image, mask, seed)
        one, two, three = (middle(found, value) for value in (1, 2, 3))
        if one is not None and two is not None:
            assert one[1] < two[1]
            seen += 1
        if one is not None and three is not None:
            assert one[0] < three[0]
    assert seen > 20
