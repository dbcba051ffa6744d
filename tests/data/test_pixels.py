import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from vimamba.data import DataError
from vimamba.data.masked.items import read_mask
from vimamba.data.masked.labels import gray_values
from vimamba.data.pixels import image_size, read_pixels, select_bands

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bands", [1, 3, 4, 5, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_a_tiff_keeps_its_bands_and_depth(tmp_path, bands, dtype, planes):
    pixels = (RNG.random((6, 7, bands)) * 200).astype(dtype)
    stored = pixels if planes == "contig" else np.moveaxis(pixels, 2, 0)
    options = {"photometric": "minisblack", "planarconfig": planes} if bands > 1 else {}
    tifffile.imwrite(tmp_path / "a.tif", stored.squeeze(), **options)
    found = read_pixels(tmp_path / "a.tif")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)
    assert image_size(tmp_path / "a.tif") == (6, 7)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_deep_png_keeps_16_bits(tmp_path, channels):
    pixels = RNG.integers(0, 65536, (6, 7, channels), dtype=np.uint16)
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    cv2.imwrite(str(tmp_path / "a.png"), pixels[:, :, order])
    found = read_pixels(tmp_path / "a.png")
    np.testing.assert_array_equal(found, pixels[:, :, : min(channels, 3)])


def test_a_size_is_that_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == read_pixels(tmp_path / "a.jpg").shape[:2] == (8, 4)


def test_masks_keep_their_values(tmp_path):
    values = RNG.integers(0, 9, (6, 7), dtype=np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([255 - i // 3 for i in range(768)])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values).save(tmp_path / "gray.png")
    Image.fromarray(np.repeat(values[..., None], 3, 2)).save(tmp_path / "rgb.png")
    Image.fromarray(values.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "tiff.tif", values.astype(np.int32))
    tifffile.imwrite(tmp_path / "float.tif", values.astype(np.float32))
    for name in ("palette.png", "gray.png", "rgb.png", "tiff.tif", "float.tif"):
        np.testing.assert_array_equal(gray_values(read_mask(tmp_path / name), name), values)
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png"), values.astype(int) * 300)
    Image.fromarray(values > 4).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png"), values > 4)


def test_jpeg_masks_are_cut_at_half(tmp_path):
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:20, 8:20] = 255
    Image.fromarray(mask).save(tmp_path / "a.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "a.jpg")))) > 2
    np.testing.assert_array_equal(read_mask(tmp_path / "a.jpg"), mask)


def test_colors_stay_colors(tmp_path):
    mask = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), mask)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"no picture")
    for read in (read_pixels, read_mask, image_size):
        with pytest.raises(DataError, match=rf"{name} cannot be read"):
            read(tmp_path / name)
        with pytest.raises(DataError, match="does not exist"):
            read(tmp_path / f"none{name}")


def test_fractions_are_no_classes(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((3, 3), 0.5, np.float32))
    with pytest.raises(DataError, match="holds fractions"):
        read_mask(tmp_path / "a.tif")


def test_bands_are_chosen_repeated_or_averaged():
    pixels = RNG.random((2, 2, 4)).astype(np.float32)
    np.testing.assert_array_equal(select_bands(pixels, 2, [3, 0], "x"), pixels[:, :, [3, 0]])
    gray = pixels[:, :, :1]
    np.testing.assert_array_equal(select_bands(gray, 3, None, "x"), np.repeat(gray, 3, 2))
    rgb = np.full((1, 1, 3), [1.0, 0, 0], dtype=np.float32)
    assert select_bands(rgb, 1, None, "x")[0, 0, 0] == pytest.approx(0.299)
    with pytest.raises(DataError, match="x has 4 bands, in_chans=3"):
        select_bands(pixels, 3, None, "x")
    with pytest.raises(DataError, match=r"bands=\[0, 4\] do not all exist"):
        select_bands(pixels, 2, [0, 4], "x")
