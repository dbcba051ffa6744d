import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from vimamba.data import DataError, EuroSAT, ImageFolder, base
from vimamba.data.inspection import inspect_images
from vimamba.data.pixels import read_image
from vimamba.data.splits import write_split


def names(data, split):
    samples = data.catalogue.splits[split]
    return {samples[i].name for i in range(len(samples))}


def test_classes_are_in_natural_order(make_folder):
    data = ImageFolder(str(make_folder({"class 10": 3, "class 2": 3, "class 1": 3})))
    assert data.class_names == ["class 1", "class 2", "class 10"]
    assert data.num_classes == 3
    assert not data.multi_label


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (64, 2)])
def test_there_are_no_more_workers_than_cores_by_default(make_folder, monkeypatch, cores, workers):
    monkeypatch.setattr(base, "count_cores", lambda: cores)
    root = str(make_folder({"a": 3, "b": 3}))
    assert ImageFolder(root).workers == workers
    assert ImageFolder(root, workers=0).workers == 0
    assert ImageFolder(root, workers=5).workers == 5


def test_one_folder_is_divided_and_the_division_can_be_read_back(make_folder, tmp_path):
    root = make_folder({"a": 20, "b": 10})
    data = ImageFolder(str(root), val_fraction=0.2, test_fraction=0.2)
    assert data.catalogue.drawn
    assert [data.count(s).tolist() for s in ("train", "val", "test")] == [[12, 6], [4, 2], [4, 2]]
    write_split(tmp_path / "split.csv", data.catalogue.splits, data.class_names)
    make_folder({"a": 30})  # ten more images appear
    again = ImageFolder(str(root), split_csv=str(tmp_path / "split.csv"), seed=7)
    for split in ("train", "val", "test"):
        assert names(again, split) == names(data, split)


def test_split_folders_are_taken_as_they_are(make_folder, tmp_path):
    for split in ("train", "valid", "test"):
        make_folder({"a": 2, "b": 3}, tmp_path / "root" / split)
    data = ImageFolder(str(tmp_path / "root"))
    assert not data.catalogue.drawn
    assert sorted(data.catalogue.splits) == ["test", "train", "val"]
    assert names(data, "val") == {"valid/a/0.png", "valid/a/1.png"} | {
        f"valid/b/{i}.png" for i in range(3)
    }


def test_a_missing_val_folder_is_drawn_from_the_training_images(make_folder, tmp_path):
    root = tmp_path / "root"
    make_folder({"a": 10, "b": 10}, root / "train")
    make_folder({"a": 2, "b": 2}, root / "test")
    data = ImageFolder(str(root), val_fraction=0.2)
    assert data.catalogue.drawn
    assert len(names(data, "val")) == 4
    assert all(name.startswith("train/") for name in names(data, "val"))
    assert len(names(data, "test")) == 4
    write_split(tmp_path / "split.csv", data.catalogue.splits, data.class_names)
    again = ImageFolder(str(root), split_csv=str(tmp_path / "split.csv"))
    assert all(names(again, s) == names(data, s) for s in ("train", "val", "test"))


def test_a_test_folder_alone_is_a_split_but_a_class_can_be_called_test(make_folder, tmp_path):
    make_folder({"a": 2, "b": 2}, tmp_path / "new" / "test")
    assert list(ImageFolder(str(tmp_path / "new")).catalogue.splits) == ["test"]
    data = ImageFolder(str(make_folder({"control": 9, "test": 9}, tmp_path / "trial")))
    assert data.class_names == ["control", "test"]


def test_limit_cuts_every_split(make_folder):
    data = ImageFolder(str(make_folder({"a": 20, "b": 20})), limit=3)
    assert [len(samples) for samples in data.catalogue.splits.values()] == [3, 3, 3]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root, make: None, "is not a folder"),
        (lambda root, make: root.mkdir(), "has no class folders"),
        (lambda root, make: (make({"a": 2}), (root / "empty").mkdir()), "empty holds no image"),
        (
            lambda root, make: (make({"a": 2}, root / "train"), make({"b": 2}, root / "val")),
            r"\['b'\] are not among the classes",
        ),
    ],
)
def test_an_unusable_folder_is_named(make_folder, tmp_path, prepare, message):
    root = tmp_path / "images"
    prepare(root, make_folder)
    with pytest.raises(DataError, match=message):
        ImageFolder(str(root)).catalogue  # noqa: B018


def test_one_class_is_an_error(make_folder):
    with pytest.raises(DataError, match="only one class"):
        ImageFolder(str(make_folder({"a": 10}))).check()


def test_an_unreadable_image_is_named(make_folder):
    root = make_folder({"a": 5, "b": 5})
    (root / "b" / "3.png").write_bytes((root / "b" / "3.png").read_bytes()[:300])
    with pytest.raises(DataError, match=r"b/3\.png cannot be read"):
        inspect_images(ImageFolder(str(root)))


def test_inspection_reports_sizes_and_channel_statistics(tmp_path):
    for name, value, size in (("a", 51, (10, 20)), ("b", 204, (30, 5))):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.full((*size, 3), value, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    seen = inspect_images(ImageFolder(str(tmp_path)))
    assert (seen.total, seen.seen, seen.smallest, seen.largest) == (6, 6, (10, 5), (30, 20))
    assert seen.mean == pytest.approx([0.5] * 3)  # half 0.2, half 0.8
    assert seen.std == pytest.approx([0.3] * 3)


def test_grey_and_16_bit_images_become_what_is_asked_for(tmp_path):
    Image.fromarray(np.full((4, 5), 0x80FF, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((4, 5), 7, dtype=np.uint8)).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "deep.png", 1).shape == (4, 5, 1)
    assert (read_image(tmp_path / "deep.png", 3) == 0x80).all()
    assert (read_image(tmp_path / "gray.png", 3) == 7).all()


def test_an_image_is_turned_as_its_exif_tag_asks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (8, 4, 3)


def test_eurosat_is_found_where_torchvision_keeps_it(make_folder, tmp_path):
    make_folder({"AnnualCrop": 6, "River": 6}, tmp_path / "eurosat" / "2750", (64, 64))
    data = EuroSAT(str(tmp_path), img_size=64)
    assert data.class_names == ["AnnualCrop", "River"]
    assert sum(len(s) for s in data.catalogue.splits.values()) == 12
    with pytest.raises(DataError, match="download=true"):
        EuroSAT(str(tmp_path / "nowhere")).catalogue  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_chans": 0}, "in_chans=0"),
        ({"in_chans": 4, "bands": [1]}, r"bands=\[1\] must name in_chans=4 bands"),
        ({"crop_pct": 1.5}, "crop_pct=1.5"),
        ({"interpolation": "cubic"}, "interpolation='cubic'"),
        ({"in_chans": 3, "mean": [0.5]}, r"mean=\[0.5\] needs 3 values"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(DataError, match=message):
        ImageFolder("somewhere", **arguments)


def test_the_order_of_classes_can_be_imposed(make_folder):
    root = make_folder({"a": 6, "b": 6})
    data = ImageFolder(str(root), classes=["b", "a", "c"])
    assert data.class_names == ["b", "a", "c"]
    assert all((item.name[0] == "a") == item.label for item in data.items("train"))
    with pytest.raises(DataError, match=r"no training image of class \['c'\]"):
        data.check()
    with pytest.raises(DataError, match=r"\['b'\] are not among the classes"):
        ImageFolder(str(root), classes=["a"]).prepare_data()


def test_what_lies_beside_the_classes_is_said(make_folder, tmp_path):
    root = make_folder({"a": 6, "b": 6})
    (root / "readme.txt").touch()
    (root / "@eaDir").mkdir()
    (root / "a" / "x.heic").touch()
    data = ImageFolder(str(root))
    assert data.class_names == ["a", "b"]
    assert data.notes() == [
        "left out: 1 @eaDir folder (images/@eaDir), 1 .txt (images/readme.txt), 1 .heic (a/x.heic)"
    ]
    make_folder({"a": 2, "b": 2}, tmp_path / "s" / "train")
    make_folder({"a": 2, "b": 2}, tmp_path / "s" / "val", size=(20, 26))
    make_folder({"c": 2}, tmp_path / "s" / "unlabeled")
    assert ImageFolder(str(tmp_path / "s")).notes() == ["left out: 1 folder (s/unlabeled)"]
    make_folder({"a": 2, "b": 2}, tmp_path / "s" / "valid")
    with pytest.raises(DataError, match="are both the val split"):
        ImageFolder(str(tmp_path / "s")).prepare_data()


def test_an_empty_file_or_a_name_in_another_encoding_is_named(make_folder):
    root = make_folder({"a": 6, "b": 6})
    (root / "a" / "broken.png").touch()
    with pytest.raises(DataError, match=r"empty \(0 bytes\): .*a/broken\.png"):
        ImageFolder(str(root)).prepare_data()
    (root / "a" / "broken.png").unlink()
    os.rename(root / "a" / "0.png", os.fsencode(root / "a") + b"/caf\xe9.png")
    with pytest.raises(DataError, match=r"caf\\xe9\.png is not UTF-8"):
        ImageFolder(str(root)).prepare_data()


def test_a_division_is_found_again_under_names_in_another_form(make_folder, tmp_path):
    root = make_folder({"ä": 9, "b": 9})
    data = ImageFolder(str(root))
    write_split(tmp_path / "split.csv", data.catalogue.splits, data.class_names)
    (root / "ä").rename(root / unicodedata.normalize("NFD", "ä"))
    make_folder({"b": 11})
    again = ImageFolder(str(root), split_csv=str(tmp_path / "split.csv"))
    assert again.class_names == data.class_names
    assert len(again.catalogue.splits["val"]) == len(data.catalogue.splits["val"])
    assert any(n.startswith("2 images are not in ") for n in again.notes())
