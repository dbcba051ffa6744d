"""`vimamba predict` on GeoTIFF scenes."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from rasterio.transform import from_origin

from tests.rasters import write_raster
from vimamba.cli import main

MODEL = "{depths: [1, 1], decoder_depths: [1, 1], dims: [8, 16]}"


def draw(size, rng):
    """A scene of four bands with nodata, and its labels."""
    labels = np.zeros(size, dtype=np.uint8)
    labels[size[0] // 3 : size[0] // 2, size[1] // 4 :] = 1
    pixels = rng.normal(800, 50, (*size, 4)) + 900.0 * labels[..., None]
    pixels = pixels.clip(1, 3000).astype(np.uint16)
    pixels[: size[0] // 8, : size[1] // 3] = 0
    return pixels, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run on tiles, and scenes with truths."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for number in range(8):
        pixels, labels = draw((40, 40), rng)
        place = {"transform": from_origin(500_000 + 400 * number, 5_000_000, 10, 10)}
        write_raster(folder / "tiles" / "images" / f"{number}.tif", pixels, nodata=0, **place)
        write_raster(folder / "tiles" / "masks" / f"{number}.tif", labels, **place)
    for number, size in enumerate([(70, 93), (20, 50), (64, 64)]):
        pixels, labels = draw(size, rng)
        write_raster(folder / "new" / "sub" / f"s{number}.tif", pixels, nodata=0)
        write_raster(folder / "truth" / "sub" / f"s{number}.tif", labels)
    options = f"--data {folder / 'tiles'} --img-size 32 --batch-size 2 --epochs 10 --lr 0.02"
    more = "--workers 0 --data.in_chans 4 --data.fit window --data.augmentation none"
    argv = f"fit --task segmentation --model vm_unet {options} {more} --out {folder / 'run'}"
    argv = [*argv.split(), "--model.model_kwargs", MODEL, "--model.optim.warmup_epochs", "1"]
    argv += ["--model.optim.ema", "0", "--model.objective.class_weights", "balanced"]
    assert main(argv) == 0
    return folder


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def test_scenes_become_maps_where_they_lie(folder, tmp_path, capsys):
    out = tmp_path / "maps"
    argv = ["predict", str(folder / "run"), str(folder / "new"), "--out", str(out)]
    more = ["--masks", str(folder / "truth"), "--cog", "--probabilities", "--polygons", "geojson"]
    assert main([*argv, *more]) == 0
    for number in range(3):
        scene = folder / "new" / "sub" / f"s{number}.tif"
        with rasterio.open(scene) as one, rasterio.open(out / "sub" / f"s{number}.tif") as other:
            assert (one.crs, one.transform, one.shape) == (other.crs, other.transform, other.shape)
            np.testing.assert_array_equal(other.read(1) == 255, one.read(1) == 0)
        assert (out / "sub" / f"s{number}_probabilities.tif").is_file()
        assert (out / "sub" / f"s{number}.geojson").is_file()
        with Image.open(out / "overlays" / "sub" / f"s{number}.png") as picture:
            assert picture.width > 512
    with (out / "scenes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["scene"] for row in rows] == [f"sub/s{n}" for n in (0, 0, 1, 1, 2, 2)]
    truth = read(folder / "truth" / "sub" / "s0.tif")
    found = read(out / "sub" / "s0.tif")
    both = ((found == 1) & (truth == 1)).sum()
    dice = 2 * both / ((found == 1).sum() + (truth[found != 255] == 1).sum())
    assert float(rows[1]["dice"]) == pytest.approx(dice)
    assert dice > 0.3  # of 27 steps: it is not all one class
    printed = capsys.readouterr().out
    assert "3 maps; written to" in printed
    states = {path: path.stat().st_mtime_ns for path in out.rglob("*.tif")}
    assert main([*argv, *more]) == 0
    assert states == {path: path.stat().st_mtime_ns for path in out.rglob("*.tif")}
    assert main([*argv, *more, "--tta", "hflip"]) == 3
    assert "was made from another scene or checkpoint, or with other" in capsys.readouterr().err


def test_a_map_is_the_mask_of_the_same_image_without_a_place(folder, tmp_path):
    scene = folder / "new" / "sub" / "s0.tif"
    with rasterio.open(scene) as file:
        pixels = np.moveaxis(file.read(), 0, -1)
    gaps = [(42113, "s", 0, "0", True)]  # GDAL's nodata
    plain = {"photometric": "minisblack", "planarconfig": "contig", "extratags": gaps}
    tifffile.imwrite(tmp_path / "plain.tif", pixels, **plain)
    run, out = str(folder / "run"), tmp_path / "out"
    argv = ["predict", run, str(scene), str(tmp_path / "plain.tif"), "--out", str(out)]
    assert main([*argv, "--no-overlays", "--batch-size", "1"]) == 0
    found, mask = read(out / "s0.tif"), np.asarray(Image.open(out / "plain.png"))
    known = found != 255
    np.testing.assert_array_equal(found[known], mask[known])


def test_processes_of_torchrun_share_the_scenes(folder, tmp_path, monkeypatch):
    argv = ["predict", str(folder / "run"), str(folder / "new"), "--out", str(tmp_path)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in (("1", ["s1"]), ("0", ["s0", "s1", "s2"])):
        monkeypatch.setenv("RANK", rank)
        assert main([*argv, "--no-overlays"]) == 0
        assert sorted(path.stem for path in (tmp_path / "sub").glob("*.tif")) == names


def test_what_does_not_suit_scenes_is_said(folder, tmp_path, capsys):
    run = str(folder / "run")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    out = ["--out", str(tmp_path / "out")]
    assert main(["predict", run, str(tmp_path / "a.png"), "--cog", *out]) == 2
    assert "--cog is for georeferenced GeoTIFF files" in capsys.readouterr().err
    scene = str(folder / "new" / "sub" / "s0.tif")
    assert main(["predict", run, scene, "--memory", "1e-6", *out]) == 3
    assert "a memory of 1e-06 GB is too little" in capsys.readouterr().err
    assert main(["predict", run, scene, "--window-size", "3x", *out]) == 3
    assert "--window-size 3x must be a whole number or HEIGHTxWIDTH" in capsys.readouterr().err
    shutil.copy(scene, tmp_path / "cut.tif")
    with (tmp_path / "cut.tif").open("r+b") as file:
        file.truncate(9000)
    assert main(["predict", run, str(tmp_path / "cut.tif"), scene, *out]) == 3
    assert "cut.tif" in capsys.readouterr().err
    assert (tmp_path / "out" / "s0.tif").is_file()
    assert not (tmp_path / "out" / "cut.tif").exists()
