"""Images of any depth and number of bands, classified from `fit` to `predict`."""

import json

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image

from vimamba.cli import main
from vimamba.cli.runs import read_config
from vimamba.data import ImageFolder, Preprocessing

TINY = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--trainer.accelerator", "cpu"]
SMALL = ["--model", "test_vit", "--model.model_kwargs", "{patch_size: 8, depth: 1}"]


def test_thirteen_bands_of_sixteen_bits(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(16):
        path = tmp_path / "tiles" / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        level = np.arange(1, 14) * 300 + 900 * (number % 2)
        pixels = rng.normal(level, 40, (18, 20, 13)).astype(np.uint16)
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    run, out = tmp_path / "run", tmp_path / "answers.json"
    args = ["--data", str(tmp_path / "tiles"), *SMALL, "--img-size", "16", "--out", str(run)]
    assert main(["fit", *args, *TINY]) == 0
    settings = read_config(run)["data"]["init_args"]
    assert settings["in_chans"] == len(settings["mean"]) == 13
    lows, highs = zip(*settings["intensity"]["ranges"], strict=True)
    assert min(lows) > 100
    assert 4000 < max(highs) < 6000
    assert main(["test", str(run)]) == 0
    file = tmp_path / "tiles" / "b" / "1.tif"
    assert main(["predict", str(run), str(file), "--out", str(out)]) == 0
    # the same with the export, which stores the bands and their ranges
    config = json.loads((run / "export" / "config.json").read_text())
    prepare = Preprocessing.from_settings(config["preprocessing"])
    net = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    with torch.no_grad():
        expected = net(prepare.file(file)[None]).softmax(-1).max().item()
    found = json.loads(out.read_text())[0]["probability"]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_deep_grey_is_scaled_by_the_training_images(ending, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "ab"[number % 2] / f"{number}{ending}"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(1000, 3000, (18, 20)).astype(np.uint16)
        if ending == ".png":
            Image.fromarray(pixels).save(path)
            continue
        fractions = pixels.astype(np.float32)
        fractions[:4] = np.nan
        tifffile.imwrite(path, fractions)
    data = ImageFolder(str(tmp_path), img_size=16, batch_size=4, workers=0)
    assert data.in_chans == 3
    image, _ = next(iter(data.train_dataloader()))
    assert image.shape == (4, 3, 16, 16)
    assert torch.isfinite(image).all()
    assert image.abs().mean() < 1.5
    item = data.items("train")[0]
    values = data.preprocessing.pixels(item)
    if ending == ".tif":
        assert (values[:4] == 0).all()
        values = values[4:]
    wanted = (item.image()[-len(values) :].astype(float) - 1000) / 2000
    np.testing.assert_allclose(values, np.repeat(wanted, 3, axis=2), atol=0.02)


def test_the_bands_named_are_the_channels(make_bands):
    assert make_bands(5).in_chans == 5
    assert make_bands(5, bands=[4, 0]).in_chans == 2
    assert make_bands(4, in_chans=4).in_chans == 4


@pytest.fixture
def make_bands(tmp_path):
    def make(count, **options):
        for number in range(6):
            path = tmp_path / "ab"[number % 2] / f"{number}.tif"
            path.parent.mkdir(exist_ok=True)
            pixels = np.full((9, 8, count), number, np.uint8)
            tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
        return ImageFolder(str(tmp_path), **options)

    return make


def test_published_means_are_for_the_channels_they_were_taken_of(make_bands):
    data = make_bands(3)
    data.take_published((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9)
    assert (data.mean, data.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert data.preprocessing.crop_pct == data.inferred_settings()["crop_pct"] == 0.9
    data = make_bands(5)
    data.take_published((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9)
    assert len(data.mean) == 5
    assert data.preprocessing.crop_pct == 1.0
    data = make_bands(3, mean=[0.5] * 3, crop_pct=1.0)
    data.take_published((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9)
    assert (data.mean, data.std) == ([0.5] * 3, [0.4, 0.5, 0.6])
    assert data.preprocessing.crop_pct == 1.0
