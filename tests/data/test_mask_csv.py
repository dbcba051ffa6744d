import pytest

from vimamba.data import DataError, MaskCSV


@pytest.fixture
def make_list(make_pairs, tmp_path):
    def make(header, row, count=12):
        make_pairs(count)
        lines = [header, *(row(i) for i in range(count))]
        (tmp_path / "list.csv").write_text("\n".join(lines))
        return str(tmp_path / "list.csv")

    return make


def pair(i):
    return f"pairs/images/{i}.png,pairs/masks/{i}.png"


def patients(samples):
    return {item.group for item in samples}


def test_patients_stay_together(make_list):
    data = MaskCSV(make_list("image,mask,patient", lambda i: f"{pair(i)},p{i // 2}"))
    data.check()
    splits = data.catalogue.splits
    assert sum(len(s) for s in splits.values()) == 12
    assert sum(len(patients(s)) for s in splits.values()) == 6


def test_every_patient_is_held_out_in_exactly_one_fold(make_list):
    def row(i):
        return f"{pair(i)},p{i // 2},{'test' if i > 9 else 'val' if i > 7 else 'train'}"

    path = make_list("image,mask,patient,split", row)
    held = []
    for fold in range(5):
        splits = MaskCSV(path, fold=fold).catalogue.splits
        assert patients(splits["test"]) == {"p5"}
        assert not patients(splits["train"]) & patients(splits["val"])
        held += patients(splits["val"])
    assert sorted(held) == ["p0", "p1", "p2", "p3", "p4"]
    with pytest.raises(DataError, match="5 groups cannot be divided into folds=6"):
        MaskCSV(path, fold=0, folds=6).catalogue  # noqa: B018


def test_given_splits_are_taken_and_may_not_share_a_patient(make_list):
    splits = ("train", "valid", "test")
    path = make_list("image,mask,split", lambda i: f"{pair(i)},{splits[i % 3]}")
    data = MaskCSV(path)
    assert {k: len(v) for k, v in data.catalogue.splits.items()} == {
        "train": 4, "val": 4, "test": 4,
    }  # fmt: skip
    assert not data.catalogue.drawn
    path = make_list("image,mask,split,patient", lambda i: f"{pair(i)},{splits[i % 3]},p{i // 4}")
    with pytest.raises(DataError, match="group 'p0' is in both"):
        MaskCSV(path).catalogue  # noqa: B018


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("path,mask", pair, r"lacks the column \['image'\]"),
        ("image,mask", lambda i: f"pairs/images/{i}.png,pairs/masks/9{i}.png", "line 2: mask .*90"),
        ("image,mask", lambda i: pair(0), "lines 2 and 3: .* is listed twice"),
    ],
)
def test_an_unusable_list_says_where(make_list, header, row, message):
    with pytest.raises(DataError, match=message):
        MaskCSV(make_list(header, row)).catalogue  # noqa: B018


def test_images_without_a_mask_are_for_prediction_if_they_are_for_test(make_list):
    def row(i):
        image, mask = pair(i).split(",")
        return f"{image},{mask if i < 9 else ''},{'test' if i > 7 else 'train'}"

    data = MaskCSV(make_list("image,mask,split", row))
    assert len(data.catalogue.splits["test"]) == 1
    assert "3 test images without masks, not scored" in data.notes()[0]
    with pytest.raises(DataError, match="line 11: the mask is empty"):
        MaskCSV(
            make_list("image,mask,split", lambda i: row(i).replace("test", "val"))
        ).prepare_data()


def test_patients_are_counted(make_list):
    path = make_list("image,mask,patient", lambda i: f"{pair(i)},{f'p{i // 2}' if i < 8 else ''}")
    data = MaskCSV(path)
    assert sum(data.tallies()["patients"].values()) == 8
    assert "4 of 12 rows have no patient: each of these images is its own group" in data.notes()
