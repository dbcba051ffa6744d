"""Pairs of two dates: layouts, matching by name, labels, and changes that keep pairs together."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from vimamba.data import ChangeFolder, DataError
from vimamba.data.masked.augmentation import MaskedAugmentation
from vimamba.data.paired.layouts import SECOND
from vimamba.labels import IGNORE

SIDE = 16
RNG = np.random.default_rng(0)


def photo(path, shape=(SIDE, SIDE, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, shape).astype(np.uint8)).save(path)


def label(path, values=None, box=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.zeros((SIDE, SIDE), dtype=np.uint8)
        values[4:8, 2:6] = box
    Image.fromarray(values).save(path)


def binary(folder, a, b, gt, names):
    for name in names:
        photo(folder / a / name)
        photo(folder / b / name)
        label(folder / gt / name)


def sizes(data):
    return {split: len(pairs) for split, pairs in data.catalogue.splits.items()}


def open_folder(root, **kwargs):
    return ChangeFolder(str(root), img_size=SIDE, workers=0, **kwargs)


@pytest.mark.parametrize(
    ("preset", "folders"),
    [
        ("levir_plus", ("A", "B", "label")),
        ("mambacd", ("T1", "T2", "GT")),
        ("s2looking", ("Image1", "Image2", "label")),
        ("sysu", ("time1", "time2", "label")),
        ("whu", ("A", "B", "label")),
    ],
)
def test_published_folders_are_read_with_and_without_their_name(tmp_path, preset, folders):
    for split, count in (("train", 4), ("test", 2)):
        binary(tmp_path / split, *folders, [f"{split}{i}.png" for i in range(count)])
    for layout in (preset, None):
        data = open_folder(tmp_path, layout=layout)
        assert sizes(data) == {"train": 3, "val": 1, "test": 2}
        assert data.kind == "binary"
        assert data.class_names == ["unchanged", "changed"]
        data.check()
    dates, truth, name = data.dataset("test")[0]
    assert dates.shape == (2, 3, SIDE, SIDE)
    assert truth.unique().tolist() == [0, 1]
    assert name.startswith(f"test/{folders[0]}/test0")


def test_splits_come_from_first_words_and_from_lists(tmp_path):
    names = ["train_1.png", "train_2.png", "val_1.png", "test_1.png"]
    binary(tmp_path / "words", "A", "B", "label", names)
    assert sizes(open_folder(tmp_path / "words")) == {"train": 2, "val": 1, "test": 1}
    root = tmp_path / "lists"
    binary(root, "A", "B", "label", [f"{i}.png" for i in range(5)])
    (root / "list").mkdir()
    for split, lines in (("train", "3.png\n1.png\n"), ("val", "0\n"), ("test", "2.png\n4.png\n")):
        (root / "list" / f"{split}.txt").write_text(lines)
    data = open_folder(root, layout="list")
    assert [pair.stem for pair in data.items("train")] == ["3", "1"]
    assert sizes(data) == {"train": 2, "val": 1, "test": 2}
    (root / "list" / "val.txt").write_text("0\n9.png\n")
    with pytest.raises(DataError, match=r"val\.txt lists pairs that do not exist: 9\.png"):
        sizes(open_folder(root))


def test_mambacd_lists_choose_within_the_folders(tmp_path):
    for split in ("train", "test"):
        binary(tmp_path / split, "T1", "T2", "GT", ["a.png", "b.png", "c.png"])
    (tmp_path / "train.txt").write_text("a\nc\n")
    data = open_folder(tmp_path, layout="mambacd", val_fraction=0)
    assert [pair.stem for pair in data.items("train")] == ["a", "c"]
    assert len(data.items("test")) == 3


def test_what_does_not_match_by_name_is_named(tmp_path):
    binary(tmp_path / "train", "A", "B", "label", ["a.png", "b.png", "c.png"])
    (tmp_path / "train" / "B" / "b.png").rename(tmp_path / "train" / "B" / "d.png")
    (tmp_path / "train" / "label" / "c.png").unlink()
    with pytest.raises(DataError, match=r"A lacks d; .*B lacks b; .*label lacks c, d"):
        sizes(open_folder(tmp_path))
    with pytest.raises(DataError, match=r"has no folders .*T1 and T2 and GT;"):
        sizes(open_folder(tmp_path / "train" / "A"))
    with pytest.raises(DataError, match=r"has no folders time1 and time2 and label, either"):
        sizes(open_folder(tmp_path, layout="sysu"))


def test_pairs_that_differ_in_size_are_named_before_training(tmp_path):
    binary(tmp_path / "train", "A", "B", "label", [f"{i}.png" for i in range(4)])
    photo(tmp_path / "train" / "B" / "2.png", (SIDE, SIDE + 2, 3))
    label(tmp_path / "train" / "label" / "1.png", np.zeros((SIDE, 3), dtype=np.uint8))
    with pytest.raises(DataError) as error:
        open_folder(tmp_path).check()
    assert "train/A/2.png has 16x16 pixels before and 16x18 after" in str(error.value)
    assert "train/A/1.png has 16x16 pixels, its labels 16x3" in str(error.value)


def test_pairs_that_differ_in_bands_or_depth_are_noted(tmp_path):
    binary(tmp_path, "A", "B", "label", [f"{i}.png" for i in range(6)])
    photo(tmp_path / "B" / "2.png", (SIDE, SIDE))
    data = open_folder(tmp_path)
    data.check()
    assert "1 pairs differ in bands from date to date: A/2.png has 3 bands before and 1 after" in (
        data.notes()
    )


def test_folders_may_have_names_of_their_own(tmp_path):
    binary(tmp_path / "train", "before", "after", "masks", ["1.png", "2.png"])
    assert open_folder(tmp_path, val_fraction=0).kind == "binary"
    binary(tmp_path / "years", "2020", "2025", "roofs", ["1.png", "2.png", "3.png", "4.png"])
    for name in ("1", "2", "3", "4"):
        for year in ("2020", "2025"):
            label(tmp_path / "years" / f"cover_{year}" / f"{name}.png", box=2)
    dates = {"before": "2020", "after": "2025"}
    found = open_folder(tmp_path / "years", **dates, masks="roofs")
    assert found.items("test")[0].files["change"].parent.name == "roofs"
    cover = open_folder(tmp_path / "years", **dates, masks=["cover_2020", "cover_2025"])
    assert cover.kind == "semantic"
    assert cover.num_classes == 3
    with pytest.raises(DataError, match=r"no folders 2020 and 2025 and label; .*name yours"):
        sizes(open_folder(tmp_path / "years", **dates))
    with pytest.raises(DataError, match=r"masks=\['a', 'b', 'c'\] must be one folder, of change"):
        open_folder(tmp_path / "years", **dates, masks=["a", "b", "c"])
    with pytest.raises(DataError, match=r"layout='xbd' has no folders \['change'\] to be named"):
        sizes(open_folder(tmp_path / "years", layout="xbd", masks="roofs"))


def test_second_in_color_and_in_numbers_gives_the_same_maps(tmp_path):
    palette = np.asarray(list(SECOND.values()), dtype=np.uint8)
    before, after = np.zeros((2, SIDE, SIDE), dtype=np.uint8)
    before[:4], after[:4] = 1, 5
    before[4:6, :3], after[4:6, :3] = 3, 2
    for i in range(4):
        for folder in ("im1", "im2"):
            photo(tmp_path / "color" / "train" / folder / f"{i}.png")
        label(tmp_path / "color" / "train" / "label1" / f"{i}.png", palette[before])
        label(tmp_path / "color" / "train" / "label2" / f"{i}.png", palette[after])
        plain = tmp_path / "plain" / "train"
        for folder, values in (("GT_T1", before), ("GT_T2", after)):
            label(plain / folder / f"{i}.png", values)
        label(plain / "GT_CD" / f"{i}.png", ((before > 0) * 255).astype(np.uint8))
        for folder in ("T1", "T2"):
            photo(plain / folder / f"{i}.png")
    for name in ("color", "plain"):
        data = open_folder(tmp_path / name, layout="second", augmentation="none")
        data.check()
        assert data.kind == "semantic"
        assert data.class_names == list(SECOND)
        truth = data.truths.read(data.items("train")[0])
        assert np.array_equal(truth, np.stack([before > 0, before, after]))
    found = open_folder(tmp_path / "plain")
    assert found.class_names == ["unchanged", *(f"class {i}" for i in range(1, 6))]
    assert found.inferred_settings()["classes"] == found.class_names


def test_unclassified_buildings_of_xbd_have_no_damage_to_find(tmp_path):
    targets = np.zeros((SIDE, SIDE), dtype=np.uint8)
    targets[:3], targets[3:6], targets[10:12] = 1, 4, 2
    wkt = "POLYGON ((0 10, 15 10, 15 11, 0 11, 0 10))"
    feature = {"properties": {"subtype": "un-classified"}, "wkt": wkt}
    known = {"properties": {"subtype": "destroyed"}, "wkt": wkt.replace("1", "2")}
    for folder in ("train", "tier3", "test", "hold"):
        for i in range(2):
            stem = f"flood_{folder}{i}"
            for date in ("pre", "post"):
                photo(tmp_path / folder / "images" / f"{stem}_{date}_disaster.png")
                values = targets if date == "post" else (targets > 0).astype(np.uint8)
                label(tmp_path / folder / "targets" / f"{stem}_{date}_disaster_target.png", values)
            notes = tmp_path / folder / "labels" / f"{stem}_post_disaster.json"
            notes.parent.mkdir(exist_ok=True)
            notes.write_text(json.dumps({"features": {"xy": [feature, known]}}))
    data = open_folder(tmp_path)
    data.check()
    assert data.kind == "damage"
    assert sizes(data) == {"train": 4, "val": 2, "test": 2}
    building, damage = data.truths.read(data.items("val")[0])
    assert np.array_equal(building, targets > 0)
    assert (damage[10:12] == IGNORE).all()
    assert np.array_equal(damage[:10], targets[:10])
    notes.write_text("{}")
    with pytest.raises(DataError, match=r"hold1_post_disaster\.json does not hold outlines"):
        open_folder(tmp_path).check()


@pytest.fixture
def bands(tmp_path):
    """Five 16-bit bands, of which the first encodes pixel positions; nodata in a corner."""
    place = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) + 1000
    for i in range(6):
        for folder, high in (("A", 1), ("B", 3)):
            pixels = np.repeat(place[..., None] * high, 5, axis=2).astype(np.float32)
            if folder == "A":
                pixels[:2, :3] = np.nan
            (tmp_path / folder).mkdir(exist_ok=True)
            options = {"photometric": "minisblack", "planarconfig": "contig"}
            tifffile.imwrite(tmp_path / folder / f"{i}.tif", pixels, **options)
        label(tmp_path / "label" / f"{i}.png", ((place % 7 == 0) * 255).astype(np.uint8))
    return tmp_path


def test_both_dates_and_the_labels_move_together(bands):
    moves = MaskedAugmentation(crop=1, aspect=1, hflip=0.5, vflip=0.5, rotate90=1, color=0)
    data = open_folder(bands, augmentation=moves, intensity={"window": (0, 5000)})
    assert data.in_chans == 5
    moved = set()
    for epoch in range(12):
        dates, truth = data.dataset("train", augmented=True)[epoch, 0]
        stored = (
            dates * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
        )
        before, after = (stored[:, 0] * 5000).round().long()
        known = truth[0] != IGNORE
        assert (~known).sum() == 6
        assert torch.equal(after[known], 3 * before[known])
        assert torch.equal(truth[0][known], (before[known] % 7 == 0).byte())
        moved.add(int(after[0, 0]))
    assert len(moved) == 4, "every corner comes to lie above left"


def test_values_change_for_each_date_by_itself(bands):
    data = open_folder(bands, augmentation=MaskedAugmentation(crop=1, aspect=1, hflip=0, color=0.5))
    plain = open_folder(bands, augmentation="none")
    changed, still = (d.dataset("train", augmented=True) for d in (data, plain))
    shifts = torch.stack(
        [(changed[epoch, 0][0] - still[epoch, 0][0]).mean((1, 2, 3)) for epoch in range(8)]
    )
    assert (shifts[:, 0] - shifts[:, 1]).abs().max() > 0.1
    assert torch.equal(changed[3, 0][0], changed[3, 0][0])


def test_a_test_without_labels_is_left_for_predict(tmp_path):
    binary(tmp_path / "train", "A", "B", "label", [f"{i}.png" for i in range(4)])
    for folder in ("A", "B"):
        photo(tmp_path / "test" / folder / "x.png")
    data = open_folder(tmp_path)
    assert sizes(data) == {"train": 3, "val": 1}
    assert any("1 pairs without labels" in note for note in data.notes())
