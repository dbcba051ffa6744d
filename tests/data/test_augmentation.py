import numpy as np
import pytest
import torch

from vimamba.data import Augmentation, ImageFolder
from vimamba.data.augmentation import resize_and_crop, train_transform
from vimamba.data.loading import EpochSampler

EVERYTHING = Augmentation(
    crop=0.5, hflip=0.5, vflip=0.5, rotate90=0.5, rotate=20, shift=0.1, zoom=0.1, color=0.4,
    blur=0.5, noise=0.5, erase=0.5,
)  # fmt: skip
NOTHING = Augmentation(crop=1, aspect=1, hflip=0, color=0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def test_the_seed_decides_every_random_change(image):
    transform = train_transform(EVERYTHING, 16, [0.5] * 3, [0.2] * 3)
    first, other, again = transform(image, 1), transform(image, 2), transform(image, 1)
    assert first.shape == (3, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_every_change_works_with_any_channels(image, in_chans):
    transform = train_transform(EVERYTHING, 16, [0.5] * in_chans, [0.2] * in_chans)
    for seed in range(20):
        assert transform(image[:, :, :in_chans], seed).shape == (in_chans, 16, 16)


def test_all_changes_can_be_turned_off(image):
    square = image[:30, :30]
    transform = train_transform(NOTHING, 30, [0, 0, 0], [1, 1, 1])
    expected = torch.from_numpy(square).permute(2, 0, 1) / 255
    torch.testing.assert_close(transform(square, 5), expected)


def test_evaluation_cuts_the_centre(image):
    image[:] = 0
    image[5:25, 10:30] = 255  # the middle 20 x 20
    found = resize_and_crop(image, 20, 20 / 30, "bicubic")
    np.testing.assert_array_equal(found, image[5:25, 10:30])


def test_the_sampler_gives_each_image_once_in_a_new_order_per_epoch():
    sampler = EpochSampler(10, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert {e for e, _ in pairs} == {epoch}
        orders.append([i for _, i in pairs])
    assert sorted(orders[0]) == list(range(10))
    assert orders[0] == orders[2] != orders[1]


def test_processes_share_an_epoch():
    parts = [[i for _, i in EpochSampler(11, 0, rank=r, world_size=2)] for r in range(2)]
    assert len(parts[0]) == len(parts[1]) == 5
    assert not set(parts[0]) & set(parts[1])


def epoch_of(data, epoch, workers):
    data.workers = workers
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return torch.cat([images for images, _ in loader])


def test_random_streams_differ_between_images_and_epochs_but_not_with_workers(tmp_path):
    """Eight equal images, which differ only by augmentation."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    data = ImageFolder(str(tmp_path), img_size=16, batch_size=2, augmentation=EVERYTHING)
    first = epoch_of(data, 0, workers=2)
    second = epoch_of(data, 1, workers=2)
    everything = torch.cat([first, second]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 16
    assert torch.equal(first, epoch_of(data, 0, workers=2))
    assert torch.equal(first, epoch_of(data, 0, workers=0))
    data.seed = 1
    assert not torch.equal(first, epoch_of(data, 0, workers=0))
