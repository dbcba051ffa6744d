import json
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from affine import Affine
from PIL import Image
from rasterio.transform import from_origin
from torch import nn

from tests.rasters import METERS, write_raster
from vimamba.data.masked.labels import LabelTable
from vimamba.data.preprocessing import Intensity, Preprocessing
from vimamba.data.rasters import Raster
from vimamba.errors import UsageError
from vimamba.tasks.scenes import Legend, Scene, predict_raster
from vimamba.tasks.scenes.legends import write_style
from vimamba.tasks.scenes.plan import BLOCK
from vimamba.tasks.scenes.polygons import area
from vimamba.tasks.scenes.quicklook import pixel_meters, round_length
from vimamba.tasks.scenes.raster import Outputs
from vimamba.tasks.segmentation.metrics import without_borders
from vimamba.tasks.segmentation.scenes import count_pairs
from vimamba.tasks.windows import Scene as Whole
from vimamba.tasks.windows import slide

RNG = np.random.default_rng(0)
LEGEND = Legend(
    ["ground & sky", "field", "house"], [0, 4, 2], [(0, 0, 0), (9, 200, 9), (200, 0, 0)]
)
TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32}
SIDE = 32


def preparation(channels, **kwargs):
    intensity = kwargs.pop("intensity", Intensity(window=(0, 1000)))
    settings = {"mean": [0.5] * channels, "std": [0.25] * channels, "fit": "window", **kwargs}
    return Preprocessing(
        img_size=SIDE, in_chans=channels, bands=None, scale_to=None, interpolation="bilinear",
        intensity=intensity, **settings,
    )  # fmt: skip


def network(channels, classes=3):
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 8, 5, padding=2), nn.GELU(), nn.Conv2d(8, classes, 3, padding=1)
    return nn.Sequential(*layers).eval()


def blended(scene, net, overlap=0.5):
    """Probabilities of a whole scene in memory, (C, H, W)."""
    height, width = scene.raster.size
    stored = scene.raster.read(slice(0, height), slice(0, width))

    def cut(rows, columns):
        return scene.prepare.image(scene._image(stored[rows, columns]))[None]

    options = {"overlap": overlap, "batch_size": 4, "device": torch.device("cpu")}
    with torch.inference_mode():
        logits = slide(Whole((height, width), cut), net, (SIDE, SIDE), **options)
    return logits.softmax(1)[0]


def as_map(probabilities, known):
    values = np.asarray(LEGEND.values)[probabilities.argmax(0).numpy()]
    return np.where(known, values, 255)


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


@pytest.mark.parametrize(
    ("size", "bands", "dtype", "nodata", "transform", "crs", "profile", "overlap"),
    [
        ((301, 77), 4, "uint16", 0, METERS, "EPSG:32633", TILED, 0.5),
        ((66, 131), 13, "int16", -5, Affine(9, 2, 5e5, 1, -10, 5e6), "EPSG:32633", {}, 0.3),
        ((40, 95), 1, "float32", None, from_origin(7, 51, 1e-4, 1e-4), "EPSG:4326", TILED, 0.0),
        ((20, 90), 4, "uint16", None, METERS, None, {"blockysize": 1}, 0.5),
        ((20, 13), 3, "uint8", 7, METERS, "EPSG:3857", {}, 0.5),
    ],
)
def test_a_map_is_that_of_the_whole_scene_in_memory(
    tmp_path, size, bands, dtype, nodata, transform, crs, profile, overlap
):
    pixels = RNG.integers(10, 900, (*size, bands)).clip(0, 250 if dtype == "uint8" else 900)
    pixels = pixels.astype(dtype)
    gap = slice(3, size[0] // 2), slice(5, size[1] // 2)
    if nodata is not None:
        pixels[gap] = nodata
    elif dtype == "float32":
        pixels[gap] = np.nan
    path = write_raster(
        tmp_path / "a.tif", pixels, nodata=nodata, transform=transform, crs=crs, **profile
    )
    intensity = Intensity(ranges=[]) if dtype == "uint8" else Intensity(window=(0, 1000))
    net, progress = network(bands), []
    with Raster(path, wanted=bands) as raster:
        scene = Scene(raster, preparation(bands, intensity=intensity), (SIDE, SIDE))
        out = tmp_path / "out" / "a.tif"
        report = predict_raster(
            [scene], net, {out: LEGEND}, num_scores=3, overlap=overlap, batch_size=3,
            advance=lambda *counts: progress.append(counts),
        )  # fmt: skip
        wanted = blended(scene, net, overlap)
        known = raster.known(*raster.load(slice(0, size[0]), slice(0, size[1])))
    assert known.all() == (nodata is None and dtype != "float32")
    np.testing.assert_array_equal(read(out), as_map(wanted, known))
    assert progress[-1] == (report.windows, report.windows)
    with rasterio.open(out) as file, rasterio.open(path) as source:
        assert (file.crs, file.transform, file.nodata) == (source.crs, source.transform, 255)
        assert file.colormap(1)[2] == (200, 0, 0, 255)
        assert file.descriptions == ("0 ground & sky, 4 field, 2 house",)
    rasterio.shutil.copy(out, tmp_path / "names.vrt", driver="VRT")
    names = (tmp_path / "names.vrt").read_text()
    assert "<Category>ground &amp; sky</Category>" in names
    assert names.index("house") < names.index("field</Category>")  # in the order of the values
    assert sorted(p.name for p in out.parent.iterdir()) == ["a.qml", "a.tif", "a.tif.aux.xml"]


def test_a_style_names_and_paints_every_class(tmp_path):
    legend = Legend(['roof "red" & <tiled>', "Straße"], [0, 4], [(1, 2, 255), (200, 16, 0)])
    write_style(tmp_path / "a.b.tif", legend)
    root = ElementTree.parse(tmp_path / "a.b.qml").getroot()
    assert root.tag == "qgis"
    renderer = root.find("pipe/rasterrenderer")
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    entries = renderer.findall("colorPalette/paletteEntry")
    assert [(e.get("value"), e.get("color"), e.get("label")) for e in entries] == [
        ("0", "#0102ff", 'roof "red" & <tiled>'),
        ("4", "#c81000", "Straße"),
    ]


@pytest.fixture
def scene(tmp_path):
    """Large enough for two block rows and for three stripes; empty in its upper left."""
    pixels = RNG.integers(10, 900, (400, 600, 2)).astype(np.uint16)
    pixels[:120, :150] = 0
    path = write_raster(tmp_path / "a.tif", pixels, nodata=0, **TILED)
    with Raster(path) as raster:
        yield Scene(raster, preparation(2), (SIDE, SIDE))


def test_stripes_that_fit_into_little_memory_give_the_same_map(tmp_path, scene):
    net = network(2)
    options = {"num_scores": 3, "overlap": 0.25, "outputs": Outputs(probabilities=True)}
    wide = predict_raster([scene], net, {tmp_path / "wide.tif": LEGEND}, **options)
    narrow = predict_raster(
        [scene], net, {tmp_path / "narrow.tif": LEGEND}, memory=1.4e6, **options
    )
    assert narrow.windows > wide.windows  # those on the seams are counted twice
    assert wide.skipped == 4 * 5  # of 32 pixels, 24 apart
    assert narrow.pixels == wide.pixels
    np.testing.assert_array_equal(read(tmp_path / "narrow.tif"), read(tmp_path / "wide.tif"))
    wanted = blended(scene, net, 0.25).numpy()
    with rasterio.open(tmp_path / "narrow_probabilities.tif") as file:
        stored = file.read()
        assert file.descriptions == tuple(LEGEND.names)
        known = stored[0] != 255
        found = stored * np.reshape(file.scales, (3, 1, 1))
    assert np.abs(found - wanted)[:, known].max() < 0.5001 / 254
    with pytest.raises(UsageError, match=r"memory of 1e-05 GB is too little .* GB would do"):
        predict_raster([scene], net, {tmp_path / "no.tif": LEGEND}, num_scores=3, memory=1e4)
    assert not list(tmp_path.glob("no*"))


@pytest.mark.parametrize("stop", [3, 180])
def test_an_interrupted_map_continues_bit_for_bit(tmp_path, scene, stop):
    net = network(2)
    outputs = Outputs(probabilities=True, cog=True)
    options = {"num_scores": 3, "overlap": 0.25, "batch_size": 2, "outputs": outputs}
    predict_raster([scene], net, {tmp_path / "whole" / "a.tif": LEGEND}, **options)
    out, calls = tmp_path / "out" / "a.tif", []

    def interrupted(windows):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return net(windows)

    with pytest.raises(KeyboardInterrupt):
        predict_raster([scene], interrupted, {out: LEGEND}, **options)
    assert [path.name for path in out.parent.iterdir()] == ["a.unfinished"]
    calls.clear()
    again = predict_raster(
        [scene], lambda x: (calls.append(1), net(x))[1], {out: LEGEND}, **options
    )
    # 17 rows of windows, 13 calls each; the first block row has 11 of them, and the two that
    # reach beyond it are there twice
    assert (len(calls) < 13 * 8) == (stop == 180)
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "a.qml", "a.tif", "a.tif.aux.xml", "a_probabilities.tif",
    ]  # fmt: skip
    for name in ("a.tif", "a_probabilities.tif"):
        assert (out.parent / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    calls.clear()
    before = predict_raster([scene], interrupted, {out: LEGEND}, **options)
    assert before.finished_before
    assert (before.pixels, calls) == (again.pixels, [])


def test_borders_of_a_scene_are_those_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (BLOCK // 8 + 2, 6)), np.ones((8, 8))).astype(np.uint8)
    found = np.where(rng.random(truth.shape) < 0.2, 1, truth).astype(np.uint8)
    found[:3] = 255
    table = LabelTable(["a", "b", "c"], [0, 1, 2], 255)
    kept = np.where(found == 255, 255, without_borders(truth, 3))
    pairs = list(zip(kept[kept != 255], found[kept != 255], strict=True))
    paths = [write_raster(tmp_path / n, v) for n, v in (("f.tif", found), ("t.tif", truth))]
    with Raster(paths[0], role="labels") as one, Raster(paths[1], onto=one, role="labels") as other:
        confusion = count_pairs(one, table, other, table, border=3)
    assert confusion.tolist() == [[pairs.count((t, f)) for f in range(3)] for t in range(3)]


def test_only_its_own_maps_are_taken_for_finished(tmp_path, scene):
    net, out = network(2), tmp_path / "map.tif"
    predict_raster([scene], net, {out: LEGEND}, num_scores=3)
    with pytest.raises(UsageError, match="was made from another scene or checkpoint"):
        predict_raster([scene], net, {out: LEGEND}, num_scores=3, origin={"checkpoint": "b"})
    Image.new("L", (3, 3)).save(tmp_path / "other.tif")
    with pytest.raises(UsageError, match=r"other\.tif is not one of our maps"):
        predict_raster([scene], net, {tmp_path / "other.tif": LEGEND}, num_scores=3)
    (tmp_path / "b.unfinished").mkdir()
    (tmp_path / "b.unfinished" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is not an unfinished map of ours"):
        predict_raster([scene], net, {tmp_path / "b.tif": LEGEND}, num_scores=3)


def test_a_cog_has_overviews_of_the_most_frequent_class(tmp_path):
    pixels = np.full((600, 700, 1), 100, dtype=np.uint16)
    pixels[:, 300:] = 900
    path = write_raster(tmp_path / "a.tif", pixels)
    with Raster(path) as raster:
        scene = Scene(raster, preparation(1), (128, 128))
        predict_raster(
            [scene], lambda x: torch.cat([-x, x], 1), {tmp_path / "cog.tif": two_classes()},
            num_scores=2, outputs=Outputs(cog=True, quicklook=tmp_path / "look.png"),
        )  # fmt: skip
    with rasterio.open(tmp_path / "cog.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1) == [2]
        assert set(np.unique(file.read(1, out_shape=(300, 350)))) == {0, 1}
        assert file.colormap(1)[1] == (200, 0, 0, 255)
        assert pixel_meters(file) == pytest.approx(10 / 0.9996, rel=1e-4)  # UTM's central meridian
    with Image.open(tmp_path / "look.png") as picture:
        assert min(picture.size) > 512
        shown = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (shown == (200, 0, 0)).all(1).any()


def two_classes():
    return Legend(["low", "high"], [0, 1], [(0, 0, 0), (200, 0, 0)], background=True)


@pytest.mark.parametrize("ending", ["geojson", "gpkg"])
@pytest.mark.parametrize("unit", ["meters", "degrees"])
def test_polygons_have_their_areas_in_square_meters(tmp_path, ending, unit):
    pixels = np.full((40, 60, 1), 100, dtype=np.uint16)
    pixels[10:20, 30:50] = 900
    pixels[12:15, 33:36] = 100  # a hole
    place = {"transform": METERS, "crs": "EPSG:32633"}
    wanted = (10 * 20 - 9) * 100 / 0.9996**2  # next to UTM's central meridian
    if unit == "degrees":
        place = {"transform": from_origin(7, 60, 1e-4, 1e-4), "crs": "EPSG:4326"}
        # a degree of latitude at 60 degrees: 111,412 m; of longitude: 55,800 m
        wanted = (10 * 20 - 9) * 11.1412 * 5.5800
    path = write_raster(tmp_path / "a.tif", pixels, **place)
    with Raster(path) as raster:
        scene = Scene(raster, preparation(1), (SIDE, SIDE))
        predict_raster(
            [scene], lambda x: torch.cat([-x, x], 1), {tmp_path / "map.tif": two_classes()},
            num_scores=2, outputs=Outputs(polygons=ending),
        )  # fmt: skip
    if ending == "gpkg":
        raw = pytest.importorskip("pyogrio.raw")
        meta, _, geometry, fields = raw.read(tmp_path / "map.gpkg")
        assert meta["crs"] == place["crs"]
        assert (len(geometry), fields[0][0], fields[1][0]) == (1, "high", 1)
        assert fields[2][0] == pytest.approx(wanted, rel=1e-3)
        return
    (feature,) = json.loads((tmp_path / "map.geojson").read_text())["features"]
    assert feature["properties"]["class"] == "high"
    assert feature["properties"]["area_m2"] == pytest.approx(wanted, rel=1e-3)
    outline, hole = feature["geometry"]["coordinates"]
    assert len(hole) == 5
    longitude, latitude = np.mean(outline[:-1], axis=0)
    if unit == "degrees":
        assert (longitude, latitude) == pytest.approx((7.004, 59.9985), abs=1e-6)
    else:  # 45.15 degrees north
        assert (longitude, latitude) == pytest.approx((15.005, 45.152), abs=2e-3)


def test_areas_of_holes_are_left_out():
    square = np.asarray([(0, 0), (4, 0), (4, 4), (0, 4), (0, 0)], dtype=float)
    assert area([square + 1e6, square[::-1] / 4 + 1e6 + 1]) == 15
    assert [round_length(most) for most in (1, 4.9, 5, 1999, 2001)] == [1, 2, 5, 1000, 2000]


def test_dates_reach_the_network_side_by_side_and_gaps_of_either_are_gaps(tmp_path):
    one, other = RNG.integers(10, 900, (2, 50, 60, 2)).astype(np.uint16)
    one[:5], other[:, :7] = 0, 0
    paths = [
        write_raster(tmp_path / name, pixels, nodata=0)
        for name, pixels in (("a.tif", one), ("b.tif", other))
    ]
    legends = {tmp_path / "x.tif": two_classes(), tmp_path / "y.tif": two_classes()}
    with Raster(paths[0]) as first, Raster(paths[1], onto=first) as second:
        scenes = [Scene(raster, preparation(2), (SIDE, SIDE)) for raster in (first, second)]
        predict_raster(
            scenes, lambda x: x[:, [0, 2]], legends, num_scores=2,
            decide=lambda scores: [scores.softmax(0), (-scores).softmax(0)],
            outputs=Outputs(quicklook=tmp_path / "look.png"),
        )  # fmt: skip
    known = np.ones((50, 60), dtype=bool)
    known[:5], known[:, :7] = False, False
    later = other[..., 0] > one[..., 0]
    found = read(tmp_path / "x.tif")
    np.testing.assert_array_equal(found == 255, ~known)
    same = one[..., 0] == other[..., 0]
    np.testing.assert_array_equal(found[known & ~same], later[known & ~same])
    np.testing.assert_array_equal(read(tmp_path / "y.tif")[known & ~same], ~later[known & ~same])


def test_percentiles_and_zscores_are_those_of_the_scene(tmp_path):
    pixels = RNG.normal(500, 50, (90, 90, 1)).astype(np.float32)
    pixels[:40] = np.nan
    path = write_raster(tmp_path / "a.tif", pixels, **TILED)
    with Raster(path) as raster:
        intensity = Intensity(percentiles=(1, 99), zscore=True)
        scene = Scene(raster, preparation(1, intensity=intensity, mean=None, std=None), (90, 90))
        found = scene.tensor(raster.read(slice(0, 90), slice(0, 90))).numpy()[0]
    assert (found[:40] == 0).all()
    assert abs(found[40:].mean()) < 0.05
    assert found[40:].std() == pytest.approx(1, abs=0.05)
