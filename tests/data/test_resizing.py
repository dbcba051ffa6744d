"""Images are resized as by Pillow and timm, and masks stay aligned."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from vimamba.data import MaskFolder, Preprocessing
from vimamba.data.augmentation import normalize, resize_and_crop
from vimamba.data.resizing import INTERPOLATIONS, resize, resize_mask
from vimamba.tasks.segmentation.task import resize as resize_scores

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def photograph(height, width, channels=3):
    """Smooth gradients, hard edges and fine texture."""
    rows, columns = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    shades = 127 + 100 * np.sin(columns / 29) * np.cos(rows / 23) * (rows % 40 > 3)
    texture = 25 * np.sign(np.sin(2.2 * columns) * np.sin(2.0 * rows))
    pixels = (shades + texture)[..., None] + rng.normal(0, 12, (height, width, channels))
    return pixels.clip(0, 255).astype(np.uint8)


# the mean may be off by at most one level of 255
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "box", "nearest"])
@pytest.mark.parametrize("shape", [(480, 640), (333, 217), (50, 71), (64, 64), (20, 300)])
@pytest.mark.parametrize(
    ("size", "crop_pct"),
    [(224, 0.875), (64, 1.0), (71, 0.9), (33, 0.95), ((96, 160), 0.9), ((71, 33), 1.0)],
)
def test_evaluation_is_timms_transform(interpolation, shape, size, crop_pct):
    pixels = photograph(*shape)
    options = {"interpolation": interpolation, "crop_pct": crop_pct}
    sides = (size, size) if isinstance(size, int) else size
    expected = create_transform((3, *sides), **PLAIN, **options)(Image.fromarray(pixels))
    found = normalize(resize_and_crop(pixels, size, crop_pct, interpolation), *PLAIN.values())
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.05 / 255
    assert (found - expected).abs().max() < 2.5 / 255
    # the same for fractions, and for any number of bands
    many = np.concatenate([pixels[:, :, [0, 1, 2]], pixels[:, :, [2, 0]]], axis=2) / np.float32(255)
    many = resize_and_crop(many, size, crop_pct, interpolation)
    assert many.dtype == np.float32
    gap = np.abs(many[:, :, :3] - expected.permute(1, 2, 0).numpy())
    assert gap.mean() < 1 / 255
    np.testing.assert_array_equal(many[:, :, 3], many[:, :, 2])


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("interpolation", sorted(INTERPOLATIONS))
def test_every_band_is_resized_alone(channels, interpolation):
    pixels = photograph(60, 45, channels)
    whole = resize(pixels, (31, 80), interpolation)
    assert (whole.shape, whole.dtype) == ((31, 80, channels), np.uint8)
    method = INTERPOLATIONS[interpolation]
    for band in range(channels):
        alone = np.asarray(Image.fromarray(pixels[..., band]).resize((80, 31), method)).astype(int)
        gap = np.abs(whole[..., band] - alone)
        # two passes, each rounded to whole levels; the order may differ
        assert gap.max() <= 5
        assert gap.mean() < 0.5


@pytest.mark.parametrize(("old", "new"), [(40, 17), (17, 40), (33, 32), (5, 5)])
def test_masks_take_the_value_at_the_centre_of_each_pixel(old, new):
    mask = np.arange(old * 3).reshape(old, 3).astype(np.uint8)
    found = resize_mask(mask, (new, 3))
    places = [min(int((i + 0.5) * old / new), old - 1) for i in range(new)]
    np.testing.assert_array_equal(found, mask[places])


@pytest.mark.parametrize("fit", ["squash", "window"])
def test_what_a_mirrored_view_or_a_transposed_file_gives_is_resized_too(fit):
    pixels = photograph(40, 60)[::-1, ::-1].swapaxes(0, 1)
    prepare = Preprocessing.from_settings(
        {"img_size": 24, "in_chans": 3, "fit": fit, "scale_to": None if fit == "squash" else 24,
         "interpolation": "bicubic", **PLAIN}
    )  # fmt: skip
    found = prepare.tensor(prepare.resize(pixels))
    size = (24, 24) if fit == "squash" else (24, 36)[::-1]
    expected = Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], Image.BICUBIC)
    gap = found.permute(1, 2, 0).numpy() - np.asarray(expected) / 255
    assert np.abs(gap).mean() < 0.5 / 255


def test_training_without_changes_is_evaluation(make_pairs):
    data = MaskFolder(str(make_pairs(size=(40, 56))), img_size=16, augmentation="none")
    train, judged = data.dataset("train", augmented=True), data.dataset("train")
    torch.testing.assert_close(train[0][0], judged[0][0])
    assert train[0][1].shape == (16, 16)


def test_downsampled_scores_are_averaged():
    fine = torch.zeros(1, 2, 64, 64)
    fine[:, 1, ::8] = 1  # lines an eighth apart
    small = resize_scores(fine, (8, 8), antialias=True)
    torch.testing.assert_close(small[:, 1], torch.full((1, 8, 8), 1 / 8), atol=0.05, rtol=0)
