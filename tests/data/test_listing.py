import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from vimamba.data import DataError
from vimamba.data.listing import (
    check_files,
    find_file,
    list_files,
    list_images,
    look_alikes,
    natural_order,
    subfolders,
)
from vimamba.data.remarks import Remarks


def test_the_order_of_names_is_total_and_natural():
    names = ["b", "a", "B", "A", "x10", "x9", "1", "01", "ä", unicodedata.normalize("NFD", "ä"), ""]
    ordered, backwards = sorted(names, key=natural_order), names[::-1]
    assert ordered == sorted(backwards, key=natural_order)
    assert ordered[:7] == ["", "01", "1", "A", "a", "B", "b"]
    assert ordered.index("x9") < ordered.index("x10")
    assert look_alikes(["A", "b", "1", "a", "01"]) == [["A", "a"], ["1", "01"]]


def test_files_left_by_operating_systems_are_ignored_and_reported(tmp_path):
    cat = tmp_path / "cat"
    for folder in ("@eaDir/1.png", "__MACOSX", ".thumbnails", "deep"):
        (cat / folder).mkdir(parents=True)
    pixels = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for name in ("1.png", "deep/2.PNG", "@eaDir/1.png/T.jpg", "__MACOSX/1.png", "._1.png"):
        pixels.save(cat / name)
    pixels.save(cat / ".thumbnails" / "1.png")
    pixels.save(cat / "3.jpg")
    (cat / "3.jpg").rename(cat / "3.jfif")
    (cat / "Thumbs.db").touch()
    (cat / "gone.png").symlink_to(cat / "nothing.png")
    remarks = Remarks()
    found = [path.relative_to(cat).as_posix() for path in list_images(cat, remarks)]
    assert found == ["1.png", "3.jfif", "deep/2.PNG"]
    (line,) = remarks.lines()
    for said in (
        "1 @eaDir folder (cat/@eaDir)", "1 __MACOSX folder", "1 hidden folder (cat/.thumbnails)",
        "1 hidden file (cat/._1.png)", "1 broken link (cat/gone.png)", "1 .db (cat/Thumbs.db)",
    ):  # fmt: skip
        assert said in line
    assert [path.name for path in subfolders(cat)] == ["deep"]


def test_linked_folders_are_followed_but_never_in_a_circle(tmp_path):
    for name in ("set/cat/deep", "set/dog", "more"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("set/cat/1.png", "set/cat/deep/2.png", "set/dog/3.png", "more/4.png"):
        (tmp_path / name).touch()
    cat = tmp_path / "set" / "cat"
    (cat / "linked").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "back").symlink_to(tmp_path / "set")
    (cat / "again").symlink_to(cat / "deep")
    remarks = Remarks()
    assert [p.name for p in list_files(cat, (".png",), remarks)] == ["1.png", "2.png", "4.png"]
    assert "2 linked folders" in remarks.lines()[0]


def test_a_file_is_found_however_its_accents_are_written(tmp_path):
    (tmp_path / unicodedata.normalize("NFD", "bä.png")).touch()
    assert find_file(tmp_path / unicodedata.normalize("NFC", "bä.png")).is_file()
    assert find_file(tmp_path / "c.png") is None
    assert find_file(tmp_path / ("x" * 300)) is None


def test_empty_files_and_names_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"1 files are empty \(0 bytes\): .*a\.png"):
        check_files([tmp_path / "a.png"])
    os.close(os.open(os.fsencode(tmp_path) + b"/caf\xe9.png", os.O_CREAT))
    with pytest.raises(DataError, match=r"caf\\xe9\.png is not UTF-8"):
        check_files(sorted(tmp_path.iterdir()))
