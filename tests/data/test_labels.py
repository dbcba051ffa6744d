import io

import numpy as np
import pytest
from PIL import Image

from vimamba.data import DataError, Labels
from vimamba.data.masked.labels import (
    LabelTable,
    infer_labels,
    mask_values,
    read_as_they_are,
    whole_numbers,
)


def settle(*masks, **labels):
    """The label table of masks with these values."""
    kinds = {frozenset(values): f"{number}.png" for number, values in enumerate(masks)}
    found = {}
    for kind, name in kinds.items():
        for value in kind:
            found.setdefault(value, name)
    return infer_labels(Labels(**labels), found, kinds, "data")


def test_masks_of_1_mixed_with_masks_of_255_are_refused_by_name():
    message = r"0 and 1, such as 0\.png, and others 0 and 255, such as 1\.png"
    with pytest.raises(DataError, match=message):
        settle({0, 1}, {0, 255})
    with pytest.raises(DataError, match=message):
        settle({0, 1}, {0, 255}, classes=["nothing", "cell"])
    # if one mask holds both, or the values are given, 255 is not an object
    assert settle({0, 1}, {0, 255}, {0, 1, 255}).values == [0, 1]
    assert settle({0, 1}, {0, 255}, values=[0, 1]).ignore == 255
    assert settle({0}, {0, 255}, {255}).values == [0, 255]
    assert settle({0}, {0, 1}).values == [0, 1]


def test_stray_values_are_named_and_all_values_listed():
    with pytest.raises(DataError, match=r"hold 0, 1, 2, 3, 77, but not 4; beyond it are 77 \(1\."):
        settle({0, 1, 2, 3}, {0, 77})
    with pytest.raises(DataError, match=r"hold 0, 128 and 255 to ignore, but not 1; beyond it are"):
        settle({0, 128, 255})
    with pytest.raises(DataError, match="resized smoothly or saved as JPEG"):
        settle(set(range(0, 256, 5)))
    table = settle({0, 1, 2}, classes=["a", "b", "c"])
    with pytest.raises(DataError, match=r"mask m holds the value 7, 9; expected 0 to 2, or 255"):
        table.indices(np.asarray([[0, 7], [9, 255]]), "m")


def test_other_masks_of_two_classes_are_read_by_their_own_values():
    ones, whites = LabelTable(["a", "b"], [0, 1], 255), LabelTable(["a", "b"], [0, 255], -1)
    kinds = {frozenset({0, 255}): "x", frozenset({0}): "y"}
    assert read_as_they_are(ones, {0: "y", 255: "x"}, kinds, "").values == [0, 255]
    kinds = {frozenset({0, 1}): "x"}
    assert read_as_they_are(whites, {0: "x", 1: "x"}, kinds, "").values == [0, 1]
    assert read_as_they_are(ones, {0: "x", 1: "x"}, kinds, "") is ones
    kinds = {frozenset({0, 1}): "x", frozenset({0, 255}): "y"}
    with pytest.raises(DataError, match="some masks hold 0 and 1"):
        read_as_they_are(ones, {0: "x", 1: "x", 255: "y"}, kinds, "")
    many = LabelTable(["a", "b", "c"], [0, 1, 2], 255)
    assert read_as_they_are(many, {0: "x", 255: "x"}, {}, "") is many


def jpeg(values, quality=75):
    """The values of a mask after saving it as JPEG."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def test_a_jpeg_holds_black_and_white_or_is_refused():
    disc = np.hypot(*np.mgrid[-20:20, -24:24]) < 13
    found = mask_values(jpeg(disc * 255), "m", blurred=True)
    np.testing.assert_array_equal(found == 255, disc)
    assert not mask_values(jpeg(disc * 0), "m", blurred=True).any()
    soft = np.asarray(Image.fromarray(np.uint8(disc * 255)).resize((30, 25), Image.Resampling.BOX))
    assert set(np.unique(mask_values(jpeg(soft), "m", blurred=True))) == {0, 255}
    three = np.where(np.arange(48) > 30, 128, disc * 255)
    for wrong in (disc * 1, disc * 200 // 2, three, np.stack([disc * 255, disc * 0, disc * 0], 2)):
        with pytest.raises(DataError, match=r"mask m holds 0, .*save it as PNG"):
            mask_values(jpeg(wrong), "m", blurred=True)


def test_transparency_and_shapes_that_are_no_mask_are_refused():
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    full = np.full_like(gray, 255)
    np.testing.assert_array_equal(mask_values(np.stack([gray, full], 2), "m"), gray)
    assert mask_values(np.stack([gray, gray, gray, full], 2), "m").shape == (2, 3, 3)
    with pytest.raises(DataError, match=r"transparent in parts \(opacity 0, 1, 2, 3, 4, 5\)"):
        mask_values(np.stack([full, full, full, gray], 2), "m")
    with pytest.raises(DataError, match=r"shape \(2, 3, 7\); expected one value per pixel"):
        mask_values(np.zeros((2, 3, 7)), "m")


def test_fractions_are_no_classes():
    assert whole_numbers(np.asarray([[1.0004, 2]], np.float32), "m").tolist() == [[1, 2]]
    with pytest.raises(DataError, match=r"mask m holds fractions such as 0\.37"):
        whole_numbers(np.asarray([[1, 0.37]]), "m")
    with pytest.raises(DataError, match="not finite"):
        whole_numbers(np.asarray([[1, np.nan]]), "m")


def test_shades_of_grey_are_colors_where_colors_are_named():
    table = LabelTable(["sky", "road"], [0, 1], -1, [[255, 255, 255], [0, 0, 0]])
    black = np.zeros((2, 2, 3), np.uint8)
    assert table.indices(black, "m").tolist() == [[1, 1], [1, 1]]
    plain = LabelTable(["a", "b"], [0, 1], 255)
    assert plain.indices(black + np.uint8(1), "m").tolist() == [[1, 1], [1, 1]]
    with pytest.raises(DataError, match=r"in color; name the colors: labels.colors \(2 of them"):
        plain.indices(np.asarray([[[0, 0, 0], [255, 0, 0]]], np.uint8), "m")
