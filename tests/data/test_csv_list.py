import unicodedata

import numpy as np
import pytest

from vimamba.data import CSVList, DataError
from vimamba.data.labelled.items import labels_of


@pytest.fixture
def make_list(make_folder, tmp_path):
    """Write images/a/0.png ... and a CSV of the given lines beside the folder."""

    def make(lines: list[str], images: int = 24):
        make_folder({"a": images})
        (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
        return str(tmp_path / "list.csv")

    return make


def test_labels_are_read_and_paths_start_at_the_csv(make_list):
    lines = ["path,label", *(f"images/a/{i}.png,{'dog' if i % 3 else 'cat'}" for i in range(24))]
    data = CSVList(make_list(lines))
    assert data.class_names == ["cat", "dog"]
    assert sum(len(s) for s in data.catalogue.splits.values()) == 24
    assert data.catalogue.drawn


def test_several_labels_make_a_multi_hot_row(make_list):
    lines = ["path,label,split", "images/a/0.png,x;z,train", "images/a/1.png,,train"]
    data = CSVList(make_list([*lines, "images/a/2.png,y,val"]))
    assert data.multi_label
    assert data.class_names == ["x", "y", "z"]
    assert labels_of(data.items("train")).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert labels_of(data.items("val")).tolist() == [[0, 1, 0]]
    assert not data.catalogue.drawn


def test_groups_stay_together(make_list):
    lines = ["path,label,group", *(f"images/a/{i}.png,{i % 2},p{i // 3}" for i in range(24))]
    data = CSVList(make_list(lines), val_fraction=0.25, test_fraction=0.25)
    found = {}
    for split, samples in data.catalogue.splits.items():
        for index in range(len(samples)):
            number = int(samples[index].name.split("/")[-1].split(".")[0])
            assert found.setdefault(number // 3, split) == split
    assert set(found.values()) == {"train", "val", "test"}


def test_val_is_held_out_of_train_where_the_column_has_none(make_list):
    rows = [
        f"images/a/{i}.png,{i % 2},p{i // 3},{'test' if i > 17 else 'train'}" for i in range(24)
    ]
    data = CSVList(make_list(["path,label,group,split", *rows]), val_fraction=0.3)
    sizes = {split: len(samples) for split, samples in data.catalogue.splits.items()}
    assert sizes["test"] == 6
    assert sizes["train"] + sizes["val"] == 18
    assert sizes["val"] % 3 == 0


def test_columns_and_the_image_folder_can_be_named(make_list, tmp_path):
    lines = ["file,diagnosis", *(f"{i}.png,{i % 2}" for i in range(12))]
    data = CSVList(
        make_list(lines),
        image_root=str(tmp_path / "images" / "a"),
        path_column="file",
        label_column="diagnosis",
    )
    assert np.sum([len(s) for s in data.catalogue.splits.values()]) == 12


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (["file,label", "images/a/0.png,x"], {}, r"lacks the column \['path'\]; it has"),
        (["path,label"], {}, "lists no image"),
        (["path,label", "images/a/99.png,x"], {}, "line 2: image .*99.png does not exist"),
        (["path,label", "images/a/0.png,"], {}, "line 2: the label is empty"),
        (
            ["path,label", "images/a/0.png,x", "images/a/0.png,y"],
            {},
            "lines 2 and 3: .* is listed twice",
        ),
        (["path,label", "images/a/0.png,x"], {"classes": ["y"]}, "label 'x' is not one of"),
        (["path,label,split", "images/a/0.png,x,holdout"], {}, "split 'holdout' is unknown"),
        (
            ["path,label,split,group", "images/a/0.png,x,train,p", "images/a/1.png,x,val,p"],
            {},
            "group 'p' is in both",
        ),
    ],
)
def test_an_unusable_list_says_where(make_list, lines, arguments, message):
    with pytest.raises(DataError, match=message):
        CSVList(make_list(lines), **arguments).catalogue  # noqa: B018


def test_a_missing_list_is_an_error(tmp_path):
    with pytest.raises(DataError, match="is not a CSV file"):
        CSVList(str(tmp_path / "no.csv")).catalogue  # noqa: B018


def test_an_image_without_a_group_is_alone(make_list):
    lines = ["path,label,group"]
    lines += [f"images/a/{i}.png,{'abc'[i % 3]},{'p' if i < 4 else ''}" for i in range(24)]
    data = CSVList(make_list(lines), val_fraction=0.25, test_fraction=0.25)
    sizes = {split: len(samples) for split, samples in data.catalogue.splits.items()}
    assert all(3 <= sizes[split] <= 10 for split in ("val", "test"))
    assert sum(data.tallies()["groups"].values()) == 21
    assert "20 of 24 rows have no group: each of these images is its own group" in data.notes()


def test_classes_that_are_easily_mixed_up_have_a_fixed_order_and_are_named(make_list):
    words = ("b", "A", "1", "a", "01", "B")
    lines = ["path,label", *(f"images/a/{i}.png,{words[i % 6]}" for i in range(24))]
    data = CSVList(make_list(lines))
    assert data.class_names == ["01", "1", "A", "a", "B", "b"]
    assert any("'A' and 'a' differ only by case or leading zeros" in n for n in data.notes())
    assert data.inferred_settings()["classes"] == data.class_names
    # composed and decomposed accents are the same class
    nfd = unicodedata.normalize("NFD", "ä")
    lines = ["path,label", *(f"images/a/{i}.png,{('ä', nfd, 'z')[i % 3]}" for i in range(24))]
    assert CSVList(make_list(lines)).class_names == ["z", "ä"]


def test_a_path_that_is_written_in_two_ways_is_there_twice(make_list):
    with pytest.raises(DataError, match=r"lines 2 and 4: .* is listed twice"):
        CSVList(make_list(["path,label", "images/a/0.png,x", "", "images/a/../a/0.png,y"])).check()


def test_a_split_file_may_not_part_a_group(make_list, tmp_path):
    lines = ["path,label,group", *(f"images/a/{i}.png,x,p{i // 2}" for i in range(24))]
    (tmp_path / "split.csv").write_text("path,split\nimages/a/0.png,train\nimages/a/1.png,val\n")
    with pytest.raises(DataError, match="group 'p0' is in both"):
        CSVList(make_list(lines), split_csv=str(tmp_path / "split.csv")).prepare_data()
