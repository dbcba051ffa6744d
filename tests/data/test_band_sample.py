"""The values that become 0 and 1 are estimated from training images, saved, and used everywhere."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from vimamba.data import CSVList, DataError, ImageFolder, Intensity, MaskFolder, Preprocessing
from vimamba.data.inspection import describe_pixels, inspect_images

RNG = np.random.default_rng(0)
HALVES = {"val_fraction": 0.25, "test_fraction": 0.25, "workers": 0, "img_size": 16}


def write(path, pixels, nodata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = [(42113, "s", 0, nodata, True)] if nodata else []
    if pixels.shape[2] == 1:
        tifffile.imwrite(path, pixels[..., 0], photometric="minisblack", extratags=extra)
    else:
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(path, pixels, **options, extratags=extra)


@pytest.fixture(params=["classification", "segmentation"])
def make(request, tmp_path):
    """Data sets of both tasks from a function of the image index."""

    def build(pixels, count=16, nodata=None, ending=".tif", **options):
        for number in range(count):
            stored = pixels(number)
            folder = "images" if request.param == "segmentation" else f"{number % 2}"
            path = tmp_path / folder / f"{number}{ending}"
            if ending == ".tif":
                write(path, stored, nodata)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(stored).save(path)
            if request.param == "segmentation":
                (tmp_path / "masks").mkdir(exist_ok=True)
                mask = np.zeros(stored.shape[:2], np.uint8)
                mask[:8] = 1
                Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
        kind = MaskFolder if request.param == "segmentation" else ImageFolder
        return kind(str(tmp_path), **{**HALVES, **options})

    return build


def reflectance(number, bands=13, dtype=np.uint16):
    """Band b lies between 100 b and 100 b + 1000."""
    base = 100 * np.arange(bands)
    return (base + RNG.uniform(0, 1000, (20, 24, bands))).astype(dtype)


def test_deep_bands_get_ranges_means_and_deviations_of_their_own(make):
    data = make(reflectance, in_chans=13)
    ranges = np.asarray(data.preprocessing.intensity.ranges)
    base = 100 * np.arange(13)
    # the 0.5 and 99.5 percentiles of a uniform distribution
    np.testing.assert_allclose(ranges, np.stack([base + 5, base + 995], 1), atol=12)
    np.testing.assert_allclose(data.mean, 0.5, atol=0.02)
    np.testing.assert_allclose(data.std, np.sqrt(1 / 12), atol=0.02)
    image = data.dataset("train")[0][0]
    assert image.shape[0] == 13
    assert image.mean().abs() < 0.15
    lines = describe_pixels(data, inspect_images(data))
    assert "percentiles 0.5 and 99.5; --data.intensity overrides them" in lines[0]
    assert "channel 12: 120" in lines[13]


def test_what_was_found_stays_with_a_run_and_its_export(make, tmp_path):
    data = make(reflectance, in_chans=2, bands=[3, 1])
    found = data.inferred_settings()
    kept = yaml.safe_load(yaml.safe_dump(found))
    intensity = Intensity(ranges=kept["intensity.ranges"])
    options = {"mean": kept["mean"], "std": kept["std"], "intensity": intensity}
    again = make(lambda n: reflectance(n) * 3, count=1, in_chans=2, bands=[3, 1], **options)
    assert "band_sample" not in again.__dict__
    assert asdict(again.preprocessing) == json.loads(json.dumps(asdict(data.preprocessing))) | {
        "intensity": asdict(intensity)
    }
    assert "band_sample" not in again.__dict__
    exported = Preprocessing.from_settings(json.loads(json.dumps(asdict(data.preprocessing))))
    path = next(tmp_path / name for name in ("images/3.tif", "1/3.tif")
                 if (tmp_path / name).exists())  # fmt: skip
    names = [data.catalogue.splits[s][i].name for s in data.catalogue.splits
             for i in range(len(data.catalogue.splits[s]))]  # fmt: skip
    assert any(path.as_posix().endswith(name) for name in names)
    for split, samples in data.catalogue.splits.items():
        for index in range(len(samples)):
            if path.as_posix().endswith(samples[index].name):
                image = data.dataset(split)[index][0]
                np.testing.assert_allclose(exported.file(path), image, atol=1e-5)


def test_nodata_takes_no_part_and_becomes_0(make):
    def bordered(number):
        pixels = reflectance(number, 1, np.float32)
        pixels[:, :12] = -9999 if number % 2 else np.nan
        return pixels

    data = make(bordered, in_chans=1, nodata="-9999")
    ((low, high),) = data.preprocessing.intensity.ranges
    assert 0 <= low < 20
    assert 980 < high <= 1000
    assert data.mean[0] == pytest.approx(0.5, abs=0.02)
    seen = inspect_images(data)
    assert seen.unknown == pytest.approx(0.5)
    assert seen.mean[0] == pytest.approx(0.5, abs=0.02)
    assert "invalid values (nodata, not finite): 50.00%; become 0" in describe_pixels(data, seen)
    item = data.catalogue.splits["train"][0]
    pixels = data.preprocessing.pixels(item)
    assert (pixels[:, :12] == 0).all()
    assert pixels[:, 12:].max() == 1
    zscore = Intensity(zscore=True, window=(0, 1000))
    again = make(bordered, in_chans=1, nodata="-9999", intensity=zscore)
    image = again.preprocessing.tensor(again.preprocessing.pixels(item))
    assert image[:, :, :12].abs().max() < 1e-3  # the mean, which shifts nothing
    assert image.mean().abs() < 1e-3


@pytest.mark.filterwarnings("error")
def test_an_image_of_which_nothing_is_known_is_0(make):
    def half(number):
        return reflectance(number, 2, np.float32) * (1 if number % 2 else np.nan)

    data = make(half, in_chans=2)
    assert data.mean == pytest.approx([0.5] * 2, abs=0.02)
    assert inspect_images(data).unknown == pytest.approx(0.5)
    empty = make(lambda n: np.full((20, 24, 2), np.nan, np.float32), in_chans=2)
    image = empty.dataset("train")[0][0]
    assert image.isfinite().all()
    assert (empty.preprocessing.pixels(empty.catalogue.splits["train"][0]) == 0).all()


def test_images_of_8_bits_end_at_255_and_are_not_looked_at(make, monkeypatch):
    def rgb(number):
        return RNG.integers(0, 90, (20, 24, 3), dtype=np.uint8)

    data = make(rgb, ending=".png")
    monkeypatch.setattr("vimamba.data.band_sample.measure", None)
    assert data.inferred_settings()["intensity.ranges"] == []
    assert data.mean == [0.485, 0.456, 0.406]
    monkeypatch.undo()
    item = data.catalogue.splits["train"][0]
    np.testing.assert_array_equal(data.preprocessing.pixels(item) * 255, item.image())
    assert describe_pixels(data, inspect_images(data)) == []
    # a 16-bit image among them, or one that is predicted, is not scaled
    write(item.path, reflectance(0, 3))
    with pytest.raises(DataError, match=r"set black and white with data\.intensity\.window"):
        data.dataset("train")[0]


def test_8_bits_with_nodata_are_still_8_bits(make):
    def gray(number):
        pixels = RNG.integers(100, 200, (20, 24, 1), dtype=np.uint8)
        pixels[:5] = 0
        return pixels

    data = make(gray, in_chans=1, nodata="0")
    assert data.inferred_settings()["intensity.ranges"] == []
    assert data.mean[0] == pytest.approx(150 / 255, abs=0.01)
    values = data.preprocessing.values(data.catalogue.splits["train"][0])
    assert values.dtype == np.uint8
    assert values[5:].min() >= 100


def test_8_bits_among_deeper_images_are_said(make):
    def mixed(number):
        pixels = RNG.integers(0, 256, (20, 24, 1), dtype=np.uint8)
        return pixels if number % 4 == 0 else pixels.astype(np.uint16) * 257

    data = make(mixed, in_chans=1)
    for split, samples in data.catalogue.splits.items():
        for index in range(len(samples)):
            assert data.dataset(split)[index][0].mean().abs() < 0.3
    lines = describe_pixels(data, inspect_images(data))
    assert "8-bit images among deeper ones: 4 of 16 images; for them 255 becomes 1" in lines


def test_fractions_stay_and_what_leaves_0_and_1_gets_a_range(make):
    data = make(lambda n: RNG.random((20, 24, 3)).astype(np.float32))
    assert data.preprocessing.intensity.ranges == [(0.0, 1.0)] * 3
    assert data.mean == [0.485, 0.456, 0.406]
    wide = make(lambda n: RNG.normal(0, 5, (20, 24, 3)).astype(np.float32))
    assert all(low < -9 and high > 9 for low, high in wide.preprocessing.intensity.ranges)
    assert wide.mean == pytest.approx([0.5] * 3, abs=0.05)


@pytest.mark.parametrize(
    ("intensity", "expected"),
    [
        ({"window": (0, 2000)}, lambda x, b: x / 2000),
        ({"ranges": [(0, 4000), (100, 1100)]}, lambda x, b: (x - 100 * b) / (4000 - 3000 * b)),
    ],
)
def test_what_is_said_overrules_what_could_be_found(make, intensity, expected):
    data = make(lambda n: reflectance(n, 2), in_chans=2, intensity=Intensity(**intensity))
    assert "intensity.ranges" not in data.inferred_settings()
    item = data.catalogue.splits["train"][0]
    stored = item.image().astype(float)
    bands = np.arange(2)
    wanted = expected(stored, bands).clip(0, 1)
    np.testing.assert_allclose(data.preprocessing.pixels(item), wanted, atol=1e-6)
    assert data.mean == pytest.approx(wanted.mean((0, 1)).tolist(), abs=0.05)


def test_transparency_palettes_and_pages_are_counted(tmp_path, make_folder):
    root = make_folder({"a": 8, "b": 8})
    Image.new("RGBA", (24, 20)).save(root / "a" / "0.png")
    Image.new("P", (24, 20)).save(root / "a" / "1.png")
    pages = np.zeros((5, 20, 24), np.uint8)
    tifffile.imwrite(root / "a" / "2.tif", pages, photometric="minisblack")
    data = ImageFolder(str(root))
    lines = describe_pixels(data, inspect_images(data))
    assert lines == [
        "transparency dropped: 1 of 17 images",
        "palettes converted to colors: 1 of 17 images",
        "additional pages dropped: 1 of 17 images",
    ]


def test_near_infrared_that_is_called_transparency_can_be_had(tmp_path):
    pixels = RNG.integers(0, 256, (20, 24, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels)  # as tifffile and GDAL write four bands
    settings = {"img_size": 20, "interpolation": "bilinear", "mean": [0.5], "std": [0.5]}
    for channels, bands, expected in (
        (4, None, [0, 1, 2, 3]), (3, None, [0, 1, 2]), (2, [3, 0], [3, 0]),
    ):  # fmt: skip
        arguments = {**settings, "in_chans": channels, "bands": bands, "fit": "window"}
        found = Preprocessing.from_settings(arguments).file(tmp_path / "a.tif")
        wanted = (pixels[..., expected] / 255 - 0.5) / 0.5
        np.testing.assert_allclose(found.permute(1, 2, 0), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": (0, 1), "ranges": [(0, 1)]}, "intensity.window and intensity.ranges exclude"),
        ({"window": (1, 0)}, r"intensity\.window=\(1, 0\) must be a low and a high end"),
        ({"ranges": [(0, 1), (1, 1)]}, "must be low and high ends"),
    ],
)
def test_an_intensity_that_cannot_be_is_named(arguments, message):
    with pytest.raises(DataError, match=message):
        Intensity(**arguments)


def test_ranges_are_one_for_each_channel(tmp_path):
    with pytest.raises(DataError, match=r"intensity\.ranges has 1 pairs; in_chans=3 needs as many"):
        CSVList(str(tmp_path / "x.csv"), in_chans=3, intensity=Intensity(ranges=[(0.0, 1.0)]))


def test_no_copy_of_a_large_scene_is_in_float64(tmp_path):
    import tracemalloc

    pixels = RNG.integers(0, 4000, (600, 600, 13), dtype=np.uint16)
    write(tmp_path / "a.tif", pixels)
    settings = {"img_size": 64, "in_chans": 13, "interpolation": "bilinear", "fit": "squash",
                "mean": [0.5] * 13, "std": [0.3] * 13,
                "intensity": {"ranges": [(0, 4000)] * 13}}  # fmt: skip
    prepare = Preprocessing.from_settings(settings)
    tracemalloc.start()
    prepare.file(tmp_path / "a.tif")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # the file's 2 bytes a value, one copy in float32, a mask of what is missing
    assert most < pixels.size * (2 + 4 + 1) * 1.3
