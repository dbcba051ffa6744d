"""torchgeo's data sets and samplers with our transforms, and our networks in its trainers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rasterio.transform import from_origin
from torch.utils.data import DataLoader

import vimamba
from tests.rasters import write_raster
from vimamba.data import ChangeFolder, Intensity, MaskFolder, Preprocessing
from vimamba.data.masked.augmentation import MaskedAugmentation
from vimamba.integrations.torchgeo import SampleTransform
from vimamba.labels import IGNORE
from vimamba.lightning import Trainer

SIDE = 32
PREPARE = Preprocessing(
    img_size=SIDE, in_chans=4, bands=None, fit="window", scale_to=None, interpolation="bilinear",
    intensity=Intensity(window=(0, 3000)), mean=[0.5] * 4, std=[0.25] * 4,
)  # fmt: skip
MOVES = MaskedAugmentation(crop=1, aspect=1, hflip=0.5, vflip=0.5, rotate90=1, color=0)
TINY = {"head": "fpn", "depths": (1, 1), "dims": (16, 24)}
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False,
         "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}  # fmt: skip


def as_sample(*files, mask):
    """A sample as torchgeo reads it: images in float32, unscaled, and an int64 mask."""
    images = [torch.from_numpy(np.asarray(Image.open(f))).float().permute(2, 0, 1) for f in files]
    values = torch.from_numpy(np.asarray(Image.open(mask))).long()
    if len(images) == 1:
        return {"image": images[0], "mask": values, "crs": "EPSG:32633"}
    return {"image": torch.stack(images), "mask": values[None]}


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        for folder in ("images", "A", "B"):
            save(tmp_path / folder / f"{i}.png", rng.integers(0, 255, (40, 36, 3)))
        mask = np.kron(rng.integers(0, 2, (10, 9)), np.ones((4, 4)))
        save(tmp_path / "masks" / f"{i}.png", mask * 255)
        save(tmp_path / "label" / f"{i}.png", mask)
    return tmp_path


@pytest.mark.parametrize("fit", ["window", "squash"])
def test_a_sample_becomes_what_our_data_give_the_network(photos, fit):
    data = MaskFolder(str(photos), img_size=SIDE, fit=fit, workers=0)
    item = data.items("test")[0]
    image, mask, *_ = data.dataset("test")[0]
    transform = SampleTransform.like(data, dtype="uint8")
    found = transform(as_sample(item.path, mask=item.mask_path))
    assert found.keys() == {"image", "mask"}
    torch.testing.assert_close(found["image"], image)
    if fit == "window":
        assert torch.equal(found["mask"], mask.long())
    assert found["mask"].shape == found["image"].shape[1:]
    assert found["mask"].unique().tolist() == [0, 1]


def test_two_dates_and_their_mask_move_together(photos):
    data = ChangeFolder(str(photos), img_size=SIDE, workers=0, augmentation=MOVES)
    pair = data.items("test")[0]
    dates, truth, _ = data.dataset("test")[0]
    sample = as_sample(pair.files["before"], pair.files["after"], mask=pair.files["change"])
    still = SampleTransform.like(data, dtype="uint8")(sample)
    torch.testing.assert_close(still["image"], dates)
    assert torch.equal(still["mask"], truth.long())
    change = SampleTransform.like(data, augmented=True, dtype="uint8")
    # pixel positions, in both dates and the mask
    place = torch.arange(40 * 36).reshape(40, 36) % 251
    sample = {"image": place.float().expand(2, 3, 40, 36), "mask": (place > 99).long()[None]}
    torch.manual_seed(0)
    seen = set()
    for _ in range(8):
        found = change(sample)
        mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
        stored = ((found["image"] * std + mean) * 255).round()
        assert torch.equal(stored[0], stored[1])
        assert found["mask"].shape == (1, SIDE, SIDE)
        assert torch.equal(stored[0, 0] > 99, found["mask"][0] == 1)
        seen.add(int(stored[0, 0, 0, 0]))
    assert len(seen) > 3
    with pytest.raises(ValueError, match="is of a classification"):
        SampleTransform(replace(PREPARE, fit="crop"))


def test_what_is_not_known_is_filled_and_ignored():
    image = torch.full((4, 6, 6), 1500.0)
    image[:, :2] = 0
    image[:3, 3] = 0  # one band is known
    found = SampleTransform(PREPARE, dtype="uint16", nodata=0)(
        {"image": image, "mask": torch.ones(6, 6, dtype=torch.long)}
    )
    assert found["mask"][:, 0].tolist() == [IGNORE, IGNORE, 1, 1, 1, 1]
    assert found["image"][3, 3, 0] == 0
    assert found["image"].isfinite().all()


@pytest.fixture
def land(tmp_path):
    """Adjacent scenes and labels, in separate folders."""
    rng = np.random.default_rng(0)
    for i in range(2):
        place = {"transform": from_origin(500_000 + 600 * i, 5_000_000, 10, 10)}
        labels = np.kron(rng.integers(0, 2, (6, 6)), np.ones((10, 10))).astype(np.uint8)
        pixels = rng.integers(300, 500, (60, 60, 4)) + 1500.0 * labels[..., None]
        pixels[:8, :8] = 0
        write_raster(tmp_path / "images" / f"{i}.tif", pixels.astype(np.uint16), nodata=0, **place)
        write_raster(tmp_path / "masks" / f"{i}.tif", labels, **place)
    return tmp_path


def test_samplers_feed_our_networks_in_torchgeos_segmentation(land):
    pytest.importorskip("torchgeo")
    from torchgeo.datasets import IntersectionDataset, RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler, RandomGeoSampler
    from torchgeo.trainers import SemanticSegmentationTask

    class Images(RasterDataset):
        filename_glob = "*.tif"

    class Masks(RasterDataset):
        filename_glob, is_image = "*.tif", False

    class Segment(SemanticSegmentationTask):
        def configure_models(self):
            self.model = vimamba.create_segmenter("test_vmamba", num_classes=2, in_chans=4, **TINY)

    loaders = []
    for augmentation in ("aerial", None):
        transform = SampleTransform(PREPARE, augmentation, dtype="uint16", nodata=0)
        data = IntersectionDataset(
            Images(str(land / "images")), Masks(str(land / "masks")), transforms=transform
        )
        sampler = (
            RandomGeoSampler(data, size=SIDE, length=4)
            if augmentation
            else GridGeoSampler(data, size=SIDE, stride=28)
        )
        loaders.append(DataLoader(data, 2, sampler=sampler, collate_fn=stack_samples))
    batches = list(loaders[1])
    assert batches[0]["image"].shape == (2, 4, SIDE, SIDE)
    assert any((batch["mask"] == IGNORE).any() for batch in batches)
    torch.manual_seed(0)
    task = Segment(in_channels=4, task="multiclass", num_classes=2, loss="ce", ignore_index=IGNORE)
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    Trainer(**QUIET, limit_val_batches=2).fit(task, *loaders)
    assert any((p != q).any() for p, q in zip(task.model.parameters(), before, strict=True))


def test_our_networks_train_in_torchgeos_change_detection(photos):
    pytest.importorskip("torchgeo")
    from torchgeo.datasets import LEVIRCD
    from torchgeo.trainers import ChangeDetectionTask

    for folder in ("A", "B", "label"):
        for path in list((photos / folder).iterdir()):
            path.rename(path.with_name(f"train_{path.name}"))

    class Detect(ChangeDetectionTask):
        def configure_models(self):
            self.model = vimamba.create_change_detector("test_vmamba", num_classes=2, **TINY)

    data = ChangeFolder(str(photos), img_size=SIDE, workers=0, val_fraction=0)
    transform = SampleTransform.like(data, augmented=True, dtype="uint8")
    loader = DataLoader(LEVIRCD(str(photos), "train", transforms=transform), 4)
    assert next(iter(loader))["image"].shape == (4, 2, 3, SIDE, SIDE)
    torch.manual_seed(0)
    # the trainer keeps the dates separate for its own Siamese networks, and so for ours
    options = {"task": "multiclass", "num_classes": 2, "loss": "ce", "ignore_index": IGNORE}
    task = Detect(model="fcsiamdiff", **options)
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    Trainer(**QUIET).fit(task, loader, loader)
    assert any((p != q).any() for p, q in zip(task.model.parameters(), before, strict=True))


@pytest.mark.parametrize("model", ["fcsiamdiff", "unet"])
def test_its_own_networks_take_our_backbones(model):
    pytest.importorskip("torchgeo")
    from torchgeo.trainers import ChangeDetectionTask

    task = ChangeDetectionTask(model=model, backbone="tu-test_vmamba", in_channels=3)
    dates = torch.randn(2, 2, 3, 64, 64)
    dates = dates if model == "fcsiamdiff" else dates.flatten(1, 2)
    assert task(dates).shape == (2, 1, 64, 64)
