"""Maps of pairs of GeoTIFF scenes have the georeference of the first date."""

import csv
import shutil
from argparse import Namespace
from dataclasses import asdict

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from tests.rasters import METERS, write_raster
from vimamba.data import Intensity, Preprocessing
from vimamba.tasks import Change
from vimamba.tasks.change.predict import map_changes
from vimamba.tasks.change.report import PREDICT_OPTIONS
from vimamba.tasks.tools import FinishedRun

PREPARE = Preprocessing(
    img_size=32, in_chans=4, bands=None, fit="window", scale_to=None, interpolation="bilinear",
    intensity=Intensity(window=(0, 3000)), mean=[0.5] * 4, std=[0.2] * 4,
)  # fmt: skip


@pytest.fixture
def scenes(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("before", "after"):
        pixels = rng.integers(1, 3000, (70, 55, 4)).astype(np.uint16)
        if name == "after":
            pixels[:9, :7] = 0
        write_raster(tmp_path / name / "a.tif", pixels, nodata=0)
    return tmp_path


def predict(folder, task, *inputs, **options):
    checkpoint = folder / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    run = FinishedRun(folder, asdict(PREPARE), (checkpoint,), lambda: task)
    given = {**PREDICT_OPTIONS, "tta": "none", "batch_size": None, "workers": 0, **options}
    paths = [folder / name for name in inputs or ("before", "after")]
    return map_changes(run, Namespace(inputs=paths, out=folder / "maps", **given))


def test_a_map_of_change_lies_where_the_scenes_lie_and_is_that_of_the_whole(scenes):
    torch.manual_seed(0)
    task = Change("test_vmamba", head="fpn", in_chans=4, img_size=32).eval()
    assert predict(scenes, task) == 0
    with rasterio.open(scenes / "maps" / "a.tif") as found:
        assert found.crs.to_epsg() == 32633
        assert found.transform == METERS
        mask = found.read(1)
    assert (mask[:9, :7] == 255).all()
    dates = torch.cat([PREPARE.file(scenes / name / "a.tif") for name in ("before", "after")])
    (whole,) = task.compare(dates, (70, 55))
    known = mask != 255
    assert (~known).sum() == 63
    assert (mask[known] == whole.numpy()[known]).mean() > 0.999  # float32 sums in another order
    assert (scenes / "maps" / "overlays" / "a.png").is_file()


def test_semantic_change_writes_a_map_of_either_date(scenes):
    torch.manual_seed(0)
    task = Change("test_vmamba", head="fpn", in_chans=4, img_size=32).eval()
    task.outputs = type(task.outputs)("semantic", 3)
    task.kind, task.class_names = "semantic", ["unchanged", "field", "roof"]
    task.net.predict = lambda before, after: [
        torch.cat([before, after], 1).repeat(1, 2, 1, 1)[:, :8]
    ]
    assert predict(scenes, task) == 0
    maps = []
    for name in ("before", "after"):
        with rasterio.open(scenes / "maps" / f"a_{name}.tif") as found:
            assert found.crs.to_epsg() == 32633
            maps.append(found.read(1))
    assert np.array_equal(maps[0] == 0, maps[1] == 0)
    assert set(np.unique(maps)) == {0, 1, 2, 255}


def test_maps_of_scenes_are_scored_where_their_labels_lie(scenes, capsys):
    torch.manual_seed(0)
    task = Change("test_vmamba", head="fpn", in_chans=4, img_size=32).eval()
    truth = np.zeros((70, 55), dtype=np.uint8)
    truth[20:40, 10:30], truth[50:60] = 255, 7
    write_raster(scenes / "truth" / "a.tif", truth, nodata=7)
    assert predict(scenes, task, masks=[scenes / "truth"]) == 0
    with rasterio.open(scenes / "maps" / "a.tif") as file:
        found = file.read(1)
    known = (found != 255) & (truth != 7)
    hit = ((found == 1) & (truth == 255) & known).sum()
    either = (((found == 1) | (truth == 255)) & known).sum()
    (row,) = csv.DictReader((scenes / "maps" / "pairs.csv").open())
    assert float(row["iou"]) == pytest.approx(hit / either)
    assert float(row["accuracy"]) == pytest.approx(((found == 1) == (truth == 255))[known].mean())
    shifted = from_origin(499_950, 5_000_040, 10, 10)
    write_raster(scenes / "shifted" / "a.tif", np.pad(truth, 5), transform=shifted, nodata=7)
    for align, code in ((False, 3), (True, 0)):
        shutil.rmtree(scenes / "maps")
        assert predict(scenes, task, masks=[scenes / "shifted"], align=align) == code
        assert ("labels of a: raster" in capsys.readouterr().err) != align


def test_a_second_date_that_lies_elsewhere_is_refused_or_warped(scenes, capsys):
    task = Change("test_vmamba", head="fpn", in_chans=4, img_size=32).eval()
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 3000, (80, 80, 4)).astype(np.uint16)
    shifted = from_origin(499_950, 5_000_040, 10, 10)
    write_raster(scenes / "shifted" / "a.tif", pixels, transform=shifted, nodata=0)
    assert predict(scenes, task, "before", "shifted") == 3
    assert "is not on the grid of" in capsys.readouterr().err
    assert predict(scenes, task, "before", "shifted", align=True) == 0
    with rasterio.open(scenes / "maps" / "a.tif") as found:
        assert found.transform == METERS
        assert (found.read(1) != 255).all()
