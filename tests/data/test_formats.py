"""Every file format gives its values, upright, or an error that names the file."""

import contextlib
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from vimamba.data import DataError, formats
from vimamba.data.masked.items import read_mask
from vimamba.data.pixels import image_size, read_head, read_image, read_pixels

RNG = np.random.default_rng(0)
T = Image.Transpose
TURNS = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
         6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90}  # fmt: skip


def write(path, pixels, nodata=None, **options):
    """A TIFF whose bands are data."""
    if nodata is not None:
        options["extratags"] = [(42113, "s", 0, nodata, True)]
    tifffile.imwrite(path, pixels, **{"photometric": "minisblack", **options})
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64", ">i2"],
)
def test_a_tiff_of_any_type_keeps_its_values(tmp_path, dtype):
    first = 0 if dtype.startswith("u") else -60
    pixels = np.arange(first, first + 120).reshape(10, 12).astype(dtype)
    order = {"byteorder": ">"} if dtype.startswith(">") else {}
    found = read_pixels(write(tmp_path / "a.TIF", pixels, **order))
    assert found.dtype == (dtype if dtype in ("uint8", "uint16") else np.float32)
    np.testing.assert_array_equal(found[..., 0], pixels.astype(np.float32))
    assert read_head(tmp_path / "a.TIF").deep == (dtype != "uint8")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "deep.png", "rgb16.png", "a.tif", "deep.tif"])
def test_every_orientation_is_turned_upright(tmp_path, name, orientation):
    path, exif = tmp_path / name, Image.Exif()
    exif[0x0112] = orientation
    blocks = np.kron(RNG.integers(0, 250, (4, 6), dtype=np.uint8), np.ones((8, 8), np.uint8))
    pixels = blocks if name.startswith("a") else blocks.astype(np.uint16) * 200
    if name == "rgb16.png":  # with its tag after the pixels
        data = imagecodecs.png_encode(np.stack([pixels] * 3, -1))
        tag = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        path.write_bytes(data[:-12] + tag + data[-12:])
    elif name.endswith(".tif"):
        write(path, pixels, extratags=[(274, "H", 1, orientation, True)])
    else:
        Image.fromarray(pixels).save(path, exif=exif)
    upright = Image.fromarray(pixels.astype(np.int32))
    upright = upright.transpose(TURNS[orientation]) if orientation > 1 else upright
    found = read_pixels(path)[..., 0]
    # JPEG blocks are restored within a few levels
    np.testing.assert_allclose(found, np.asarray(upright), atol=20 if name == "a.jpg" else 0)
    assert image_size(path) == found.shape == read_image(path).shape[:2]
    if name not in ("a.jpg", "rgb16.png"):
        np.testing.assert_array_equal(read_mask(path), np.asarray(upright))


@pytest.mark.parametrize("text", ["-9999", "-3.4028234663852886e+38", "nan"])
def test_nodata_and_what_is_not_finite_are_no_numbers(tmp_path, text):
    pixels = RNG.random((6, 7)).astype(np.float32)
    pixels[0], pixels[1] = np.float32(text), np.inf
    found = read_pixels(write(tmp_path / "a.tif", pixels, text))[..., 0]
    assert np.isnan(found[:2]).all()
    np.testing.assert_array_equal(found[2:], pixels[2:])


@pytest.mark.parametrize(("dtype", "becomes"), [("uint8", "float16"), ("uint16", "float32")])
def test_nodata_of_integers_is_no_number_where_it_occurs(tmp_path, dtype, becomes):
    pixels = RNG.integers(1, 200, (6, 7, 4)).astype(dtype)
    pixels[2, 3, 1] = 0
    for text in ("0", "-9999", "0.5", "300000"):
        write(tmp_path / "a.tif", pixels, text, planarconfig="contig")
        found = read_pixels(tmp_path / "a.tif")
        assert found.dtype == (becomes if text == "0" else dtype)
        assert np.isnan(found).sum() == (text == "0")
        np.testing.assert_array_equal(np.nan_to_num(found), pixels)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_transparency_is_left_out_unless_it_makes_up_the_bands(tmp_path, mode, ending):
    if ending != "png" and mode == "P":
        pytest.skip("has no palette with transparency")
    colors = RNG.integers(0, 256, (6, 7, 4), dtype=np.uint8)
    image = Image.fromarray(colors).convert("LA" if mode == "LA" else "RGBA")
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    if mode == "P":
        image = Image.fromarray(RNG.integers(0, 4, (6, 7), dtype=np.uint8))
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
        options["transparency"] = bytes([0, 50, 100, 255])
    image.save(tmp_path / f"a.{ending}", **options)
    with Image.open(tmp_path / f"a.{ending}") as opened:
        own = np.asarray(opened.convert("LA" if opened.mode == "LA" else "RGBA"))
    bands = own.shape[2] - 1
    head = read_head(tmp_path / f"a.{ending}")
    assert (head.transparent, head.bands, head.palette) == (True, bands, mode == "P")
    np.testing.assert_array_equal(read_pixels(tmp_path / f"a.{ending}"), own[..., :-1])
    whole = read_pixels(tmp_path / f"a.{ending}", wanted=bands + 1)
    np.testing.assert_array_equal(whole, own)


def test_colors_of_print_and_television_and_palettes_become_rgb(tmp_path):
    inks = RNG.integers(0, 256, (6, 7, 4), dtype=np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(inks[..., :3], "YCbCr").save(tmp_path / "ycbcr.tif")
    palette = Image.fromarray(inks[..., 0] % 4)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    palette.save(tmp_path / "palette.tif")
    palette.save(tmp_path / "palette.gif")
    Image.new("CMYK", (8, 8), (10, 200, 30, 40)).save(tmp_path / "cmyk.jpg")
    for name in ("cmyk.tif", "ycbcr.tif", "palette.tif", "palette.gif", "cmyk.jpg"):
        with Image.open(tmp_path / name) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(read_pixels(tmp_path / name) - expected).max() <= 1, name
    tifffile.imwrite(tmp_path / "lab.tif", inks[..., :3], photometric="cielab")
    with pytest.raises(DataError, match=r"lab\.tif cannot be read: colors of the kind"):
        read_pixels(tmp_path / "lab.tif")


def test_one_bit_is_black_and_white_and_0_is_black(tmp_path):
    bits = RNG.random((6, 7)) > 0.5
    Image.fromarray(bits).save(tmp_path / "a.png")
    Image.fromarray(bits).save(tmp_path / "a.tif")
    write(tmp_path / "white.tif", bits, photometric="miniswhite")
    write(tmp_path / "fax.tif", RNG.integers(0, 9, (3, 4), np.uint16), photometric="miniswhite")
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_pixels(tmp_path / name)[..., 0], bits * 255)
        np.testing.assert_array_equal(read_mask(tmp_path / name), bits)
    np.testing.assert_array_equal(read_pixels(tmp_path / "white.tif")[..., 0], 255 - bits * 255)
    assert read_pixels(tmp_path / "fax.tif").min() > 65520


def test_pages_are_bands_only_if_there_are_as_many_as_are_wanted(tmp_path):
    pages = RNG.integers(0, 4000, (13, 6, 7), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pages)
    assert read_head(tmp_path / "a.tif").pages == 13
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif")[..., 0], pages[0])
    whole = read_pixels(tmp_path / "a.tif", wanted=13)
    np.testing.assert_array_equal(whole, np.moveaxis(pages, 0, 2))
    # overviews, as in a cloud-optimized GeoTIFF, are not pages
    with tifffile.TiffWriter(tmp_path / "cog.tif") as file:
        for step in (1, 2):
            file.write(pages[0, ::step, ::step], subfiletype=step - 1, metadata=None)
    assert read_head(tmp_path / "cog.tif").pages == 1


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_color_is_not_cut_to_8_bits(tmp_path, channels):
    pixels = RNG.integers(0, 65536, (6, 7, channels), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    bands = {2: 1, 3: 3, 4: 3}[channels]
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), pixels[..., :bands])
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png", channels), pixels)
    assert read_head(tmp_path / "a.png").bands == bands
    if channels == 3:
        head = b"P6\n7 6\n65535\n"
        (tmp_path / "a.ppm").write_bytes(head + pixels.astype(">u2").tobytes())
        np.testing.assert_array_equal(read_pixels(tmp_path / "a.ppm"), pixels)
        (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(pixels, reversible=True))
        np.testing.assert_array_equal(read_pixels(tmp_path / "a.jp2"), pixels)


def test_a_file_is_what_it_holds_whatever_it_is_called(tmp_path):
    pixels = RNG.integers(0, 4000, (6, 7, 5), dtype=np.uint16)
    write(tmp_path / "a.png", pixels, planarconfig="contig")
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), pixels)
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").rename(tmp_path / "b.jfif")
    assert read_pixels(tmp_path / "b.jfif").shape == (16, 16, 1)
    assert np.unique(read_mask(tmp_path / "b.jfif")).tolist() == [255]


def test_large_images_are_read_and_what_memory_cannot_hold_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        Image.new("L", (50, 40)).save(tmp_path / "a.png")
        assert read_pixels(tmp_path / "a.png").shape == (40, 50, 1)
        assert image_size(tmp_path / "a.png") == read_mask(tmp_path / "a.png").shape == (40, 50)
        assert Image.MAX_IMAGE_PIXELS == 10
    # a header that claims 60000 x 60000 pixels, in a hundred bytes
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))
    (tmp_path / "bomb.png").write_bytes(png + chunk(b"IEND", b""))
    tifffile.imwrite(tmp_path / "bomb.tif", shape=(60000, 60000), dtype="uint16", tile=(1024, 1024),
                     data=iter([b"0"] * 3481), compression="deflate")  # fmt: skip
    monkeypatch.setattr(formats, "free_memory", lambda: 1 << 30)
    for name in ("bomb.png", "bomb.tif"):
        with pytest.raises(DataError, match=rf"{name} does not fit into memory: \d+\.\d GB"):
            read_pixels(tmp_path / name)


KINDS = ("a.png", "deep.png", "a.jpg", "a.gif", "a.webp", "a.tif", "lzw.tif")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_any_kind_is_named(tmp_path, kind):
    path = tmp_path / kind
    pixels = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    if kind == "deep.png":
        path.write_bytes(imagecodecs.png_encode(pixels.astype(np.uint16) * 200))
    elif kind.endswith(".tif"):
        tifffile.imwrite(path, pixels, compression="lzw" if kind == "lzw.tif" else None)
    else:
        Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    read_pixels(path)
    for end in (0, 3, 9, 20, len(whole) // 3, len(whole) // 2):
        path.write_bytes(whole[:end])
        for read in (read_pixels, read_image, read_mask):
            with pytest.raises(DataError, match=r"cannot be read"):
                read(path)
    # changed bytes may go unnoticed, but must not raise anything except DataError
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 300), 3):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        for read in (read_pixels, image_size):
            with contextlib.suppress(DataError):
                read(path)
