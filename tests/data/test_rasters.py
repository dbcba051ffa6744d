import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import Resampling, reproject

from tests.rasters import METERS, write_raster
from vimamba.data.errors import DataError
from vimamba.data.masked.labels import LabelTable
from vimamba.data.pixels import read_pixels
from vimamba.data.rasters import Raster, Strips
from vimamba.labels import IGNORE

RNG = np.random.default_rng(0)
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}


def read_all(raster):
    height, width = raster.size
    return raster.read(slice(0, height), slice(0, width))


@pytest.mark.parametrize(
    ("dtype", "bands", "nodata", "profile"),
    [
        ("uint8", 1, 3, TILED),
        ("uint8", 3, None, {}),
        ("uint16", 4, 0, {"blockysize": 1}),
        ("int16", 13, -7, TILED),
        ("float32", 1, -3.4028234663852886e38, TILED),
        ("float32", 4, None, {}),
    ],
)
def test_values_and_gaps_are_those_of_the_reader_of_whole_images(
    tmp_path, dtype, bands, nodata, profile
):
    pixels = RNG.integers(0, 9, (37, 51, bands)).astype(dtype)
    if nodata is not None:
        pixels[5:20, 7:30] = nodata
        pixels[30, 2, 0] = nodata  # in one band only
    if dtype == "float32":
        pixels[1, 1] = np.nan
    path = write_raster(tmp_path / "a.tif", pixels, nodata=nodata, **profile)
    wanted = read_pixels(path, bands)
    with Raster(path, wanted=bands) as raster:
        found = read_all(raster)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
        strips = Strips(raster, slice(4, 45))
        strips.hold(slice(9, 33))
        part = slice(10, 31), slice(6, 40)
        np.testing.assert_array_equal(strips.cut(*part), wanted[part].astype(np.float32))
        known = np.isfinite(wanted.astype(np.float32)).any(-1)[10:31, 4:45]
        np.testing.assert_array_equal(strips.known(part[0]), known)


def test_opacity_masks_and_palettes_are_what_they_stand_for(tmp_path):
    pixels = RNG.integers(1, 200, (9, 8, 4)).astype(np.uint8)
    pixels[:3, :, 3] = 0
    path = write_raster(tmp_path / "rgba.tif", pixels, photometric="RGB", alpha="YES")
    with Raster(path) as raster:
        found = read_all(raster)
    assert np.isnan(found[:3].astype(np.float32)).all()
    np.testing.assert_array_equal(found[3:], pixels[3:, :, :3])
    with Raster(path, wanted=4) as raster:  # near infrared marked as alpha
        np.testing.assert_array_equal(read_all(raster), pixels)
    mask = np.full((9, 8), 255, dtype=np.uint8)
    mask[4:, 2:] = 0
    path = write_raster(tmp_path / "masked.tif", pixels[..., :2], mask=mask)
    with Raster(path, bands=[1]) as raster:
        found = read_all(raster)[..., 0].astype(np.float32)
    np.testing.assert_array_equal(found, np.where(mask > 0, pixels[..., 1], np.nan))
    path = write_raster(tmp_path / "palette.tif", pixels[..., 0] % 2)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (1, 2, 3, 255), 1: (40, 50, 60, 255)})
    with Raster(path, wanted=3) as raster:
        colors = np.asarray([(1, 2, 3), (40, 50, 60)])[pixels[..., 0] % 2]
        np.testing.assert_array_equal(read_all(raster), colors)


def test_bands_are_chosen_and_missing_ones_are_named(tmp_path):
    pixels = RNG.integers(0, 9, (5, 6, 4)).astype(np.uint16)
    path = write_raster(tmp_path / "a.tif", pixels)
    with Raster(path, bands=[3, 0]) as raster:
        np.testing.assert_array_equal(read_all(raster), pixels[..., [3, 0]])
    with pytest.raises(DataError, match=r"a\.tif has 4 bands; bands=\[4\]"):
        Raster(path, bands=[4])
    (tmp_path / "b.tif").write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"b\.tif cannot be read"), Raster(tmp_path / "b.tif") as b:
        read_all(b)


def test_a_second_date_is_warped_onto_the_first_or_refused(tmp_path):
    first = write_raster(tmp_path / "a.tif", np.ones((20, 30), np.uint16))
    pixels = RNG.integers(1, 900, (20, 30)).astype(np.uint16)
    # three pixels to the east and two to the south
    second = write_raster(
        tmp_path / "b.tif", pixels, transform=from_origin(500_030, 4_999_980, 10, 10)
    )
    with Raster(first) as onto:
        with pytest.raises(DataError, match=r"b\.tif .* is not on the grid of .*a\.tif"):
            Raster(second, onto=onto)
        with Raster(second, onto=onto, align=True) as raster:
            assert raster.size == onto.size
            found = read_all(raster)[..., 0]
        np.testing.assert_array_equal(found[2:, 3:], pixels[:-2, :-3])
        assert np.isnan(found[:2]).all()
        assert np.isnan(found[:, :3]).all()
        nowhere = write_raster(tmp_path / "c.tif", pixels[:9], crs=None)
        with pytest.raises(DataError, match="one has no CRS"):
            Raster(nowhere, onto=onto, align=True)
        other = write_raster(tmp_path / "d.tif", pixels, crs="EPSG:32634")
        with pytest.raises(DataError, match=r"EPSG:32634.* is not on"):
            Raster(other, onto=onto)


def test_labels_on_another_grid_are_warped_to_the_nearest(tmp_path):
    image = write_raster(tmp_path / "a.tif", np.ones((40, 30), np.uint8))
    labels = RNG.integers(0, 3, (25, 20)).astype(np.uint8)
    there = from_origin(499_950, 5_000_033, 17, 17)
    # 0 is a class, even if the file says nodata
    path = write_raster(tmp_path / "labels.tif", labels, transform=there, nodata=0)
    wanted = np.full((40, 30), 9, dtype=np.uint8)
    reproject(
        labels + 1, wanted, src_transform=there, src_crs="EPSG:32633", dst_transform=METERS,
        dst_crs="EPSG:32633", resampling=Resampling.nearest, dst_nodata=0,
    )  # fmt: skip
    wanted = np.where(wanted == 0, IGNORE, wanted - 1)
    assert (wanted == IGNORE).any() and (wanted == 0).any()  # noqa: PT018
    table = LabelTable(["a", "b", "c"], [0, 1, 2], 255)
    with Raster(image) as onto, Raster(path, onto=onto, align=True, role="labels") as raster:
        found = raster.labels(slice(0, 40), slice(0, 30), table)
    np.testing.assert_array_equal(found, wanted)


def test_a_strip_is_decoded_once(tmp_path, monkeypatch):
    pixels = RNG.integers(0, 9, (700, 40)).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, tiled=True, blockxsize=64, blockysize=64)
    loaded = []
    load = Raster.load
    monkeypatch.setattr(
        Raster,
        "load",
        lambda self, rows, columns: (loaded.append(rows), load(self, rows, columns))[1],
    )
    with Raster(path) as raster:
        strips = Strips(raster, slice(0, 40))
        for row in range(0, 700 - 100 + 1, 30):
            strips.hold(slice(row, row + 100))
            assert len(strips._held) <= Strips.most(raster, 100)
            for column in (0, 8):
                found = strips.cut(slice(row, row + 100), slice(column, column + 32))
                np.testing.assert_array_equal(
                    found[..., 0], pixels[row : row + 100, column : column + 32]
                )
    assert [rows.start for rows in loaded] == [0, 256, 512]
