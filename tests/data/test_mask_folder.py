import json
import shutil
import unicodedata

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from vimamba.data import ISIC, DataError, Labels, MaskedAugmentation, MaskFolder
from vimamba.data.masked.items import MaskedFile
from vimamba.data.splits import write_split


def names(data, split):
    return {item.name for item in data.catalogue.splits[split]}


def test_pairs_are_found_by_name_and_divided(make_pairs, tmp_path):
    root = make_pairs(20)
    data = MaskFolder(str(root), img_size=16)
    data.check()
    assert {split: len(s) for split, s in data.catalogue.splits.items()} == {
        "train": 14, "val": 3, "test": 3,
    }  # fmt: skip
    assert data.catalogue.drawn
    assert data.class_names == ["background", "class 1", "class 2"]
    for item in data.catalogue.splits["train"]:
        assert item.path.stem == item.mask_path.stem
    write_split(tmp_path / "split.csv", data.catalogue.splits, data.class_names)
    assert "images/3.png,masks/3.png," in (tmp_path / "split.csv").read_text()
    again = MaskFolder(str(root), split_csv=str(tmp_path / "split.csv"), seed=9)
    assert all(names(again, split) == names(data, split) for split in ("train", "val", "test"))


def test_split_folders_in_both_arrangements(make_pairs, tmp_path):
    for split in ("train", "val", "test"):
        make_pairs(3, tmp_path / "above" / split)
        for kind in ("images", "masks"):
            target = tmp_path / "below" / kind / split
            shutil.copytree(tmp_path / "above" / split / kind, target)
    for name in ("above", "below"):
        data = MaskFolder(str(tmp_path / name))
        data.check()
        assert not data.catalogue.drawn
        assert [len(data.catalogue.splits[s]) for s in ("train", "val", "test")] == [3, 3, 3]


def test_val_is_drawn_from_train_next_to_a_given_test(make_pairs, tmp_path):
    make_pairs(10, tmp_path / "root" / "train")
    make_pairs(3, tmp_path / "root" / "test")
    data = MaskFolder(str(tmp_path / "root"), val_fraction=0.3)
    assert {k: len(v) for k, v in data.catalogue.splits.items()} == {
        "train": 7, "val": 3, "test": 3,
    }  # fmt: skip


def test_groups_and_folds_keep_patients_apart(make_pairs):
    root = make_pairs(20)
    for path in [*root.rglob("*.png")]:
        path.rename(path.with_name(f"p{int(path.stem) // 2}_{path.stem}.png"))
    seen = []
    for fold in range(5):
        data = MaskFolder(str(root), group_pattern=r"(p\d+)_", fold=fold, folds=5)
        parts = {
            split: {name.split("/")[1].split("_")[0] for name in names(data, split)}
            for split in ("train", "val")
        }
        assert not parts["train"] & parts["val"]
        assert len(parts["val"]) == 2
        seen += parts["val"]
    assert sorted(seen) == [f"p{i}" for i in range(10)]
    data = MaskFolder(str(root), group_pattern=r"(p\d+)_")
    assert len({n.split("_")[0] for s in ("train", "val", "test") for n in names(data, s)}) == 10
    assert sum(len({n.split("_")[0] for n in names(data, s)}) for s in data.catalogue.splits) == 10
    with pytest.raises(DataError, match=r"group_pattern='x\(\.\)' matches nothing in images/p0_0"):
        MaskFolder(str(root), group_pattern="x(.)").catalogue  # noqa: B018


def test_a_fold_and_the_survey_read_each_mask_once(make_pairs, monkeypatch):
    data, read = MaskFolder(str(make_pairs(12)), fold=0, folds=3, workers=0), []
    mask = MaskedFile.mask
    monkeypatch.setattr(MaskedFile, "mask", lambda self: (read.append(self.name), mask(self))[1])
    data.check()
    assert sorted(read) == sorted(names(data, "train") | names(data, "val"))


def test_masks_of_0_and_255_are_binary(make_pairs):
    data = MaskFolder(str(make_pairs(values=(0, 255))), img_size=16, augmentation="none")
    assert data.class_names == ["background", "foreground"]
    assert data.label_values == [0, 255]
    _, mask = data.dataset("train", augmented=True)[0]
    assert set(mask.unique().tolist()) <= {0, 1}


def test_jpeg_masks_and_other_endings_fit(make_pairs):
    data = MaskFolder(str(make_pairs(values=(0, 255), suffix=".jpg")))
    data.check()
    assert data.label_values == [0, 255]


def test_255_is_ignored_and_a_mask_suffix_is_cut(make_pairs):
    root = make_pairs(12, values=(0, 1, 2, 255))
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    data = MaskFolder(str(root), mask_suffix="_mask", img_size=16, val_fraction=0.25)
    data.check()
    assert data.num_classes == 3
    masks = [item[1] for item in (data.dataset("train")[i] for i in range(6))]
    assert 255 in torch.cat([mask.flatten() for mask in masks])


def test_where_0_is_ignored_the_classes_start_at_1(make_pairs):
    data = MaskFolder(str(make_pairs(12)), labels=Labels(ignore=0, background=False))
    data.check()
    assert data.class_names == ["class 1", "class 2"]
    item = next(
        data.dataset("train")[i] for i in range(8) if data.dataset("train")[i][1].max() == 255
    )
    assert set(item[1].unique().tolist()) <= {255, 0, 1}


def test_labels_survive_the_run_folder(make_pairs):
    data = MaskFolder(str(make_pairs(values=(0, 255))))
    found = data.inferred_settings().items()
    kept = {n.removeprefix("labels."): value for n, value in found if n.startswith("labels.")}
    kept = json.loads(json.dumps(kept))
    again = MaskFolder(str(data.root), labels=Labels(**kept))
    assert "survey" not in again.__dict__
    assert (again.class_names, again.label_values) == (data.class_names, data.label_values)
    assert "survey" not in again.__dict__


def test_masks_in_color(make_pairs, tmp_path):
    root = make_pairs(8)
    colors = [[0, 0, 0], [255, 0, 0], [0, 200, 30]]
    for path in (root / "masks").iterdir():
        values = np.asarray(Image.open(path))
        Image.fromarray(np.asarray(colors, dtype=np.uint8)[values]).save(path)
    with pytest.raises(DataError, match="is in color; name the colors"):
        MaskFolder(str(root)).check()
    names = ["road", "house", "tree"]
    data = MaskFolder(str(root), labels=Labels(classes=names, colors=colors))
    data.check()
    assert data.class_counts[1] > 0
    assert sum(data.class_counts) == len(data.catalogue.splits["train"]) * 20 * 24
    wrong = Labels(classes=names, colors=[*colors[:2], [1, 1, 1]])
    with pytest.raises(DataError, match=r"holds the color \[0, 200, 30\], which is not a class"):
        MaskFolder(str(root), labels=wrong).check()


def break_size(root):
    Image.new("L", (5, 5)).save(root / "masks" / "3.png")


def break_value(root):
    Image.new("L", (24, 20), 7).save(root / "masks" / "3.png")


def break_file(root):
    (root / "masks" / "3.png").write_bytes((root / "masks" / "3.png").read_bytes()[:50])


def break_image(root):
    (root / "images" / "3.png").write_text("no picture")


def drop_mask(root):
    (root / "masks" / "3.png").unlink()


def add_mask(root):
    shutil.copy(root / "masks" / "3.png", root / "masks" / "33.png")


def twice(root):
    Image.new("RGB", (24, 20)).save(root / "images" / "3.jpg")


def no_masks(root):
    shutil.rmtree(root / "masks")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_size, "image images/3.png has 20x24 pixels, its mask 5x5"),
        (break_value, "mask masks/3.png holds the value 7; expected 0 to 2, or 255 to ignore"),
        (break_file, r"mask .*masks/3.png cannot be read"),
        (break_image, r"image .*images/3.png cannot be read"),
        (drop_mask, r"images in .*images without a mask in .*masks: 3$"),
        (add_mask, r"masks in .*masks without an image in .*images: 33$"),
        (twice, r"3\.jpg and .*3\.png have the same name"),
        (no_masks, "has neither a folder images and a folder masks nor folders train, val, test"),
    ],
)
def test_what_does_not_fit_is_named_before_training(make_pairs, spoil, message):
    root = make_pairs()
    spoil(root)
    with pytest.raises(DataError, match=message):
        MaskFolder(str(root), labels=Labels(classes=["a", "b", "c"]), workers=2).check()


def test_strange_values_need_names(make_pairs):
    root = make_pairs(values=(0, 50, 100))
    beyond = r"50 \(masks/1.png\), 100 \(masks/5.png\); set the classes"
    with pytest.raises(DataError, match=rf"hold 0, 50, 100, but not 1; beyond it are {beyond}"):
        MaskFolder(str(root)).check()
    data = MaskFolder(str(root), labels=Labels(values=[0, 50, 100]))
    data.check()
    assert data.class_names == ["background", "class 50", "class 100"]


@pytest.mark.parametrize("workers", [0, 2])
def test_random_streams_are_a_function_of_seed_epoch_and_image(make_pairs, workers):
    root = make_pairs(6)
    everything = MaskedAugmentation(
        crop=0.5, hflip=0.5, vflip=0.5, rotate90=0.5, rotate=20, zoom=0.1, elastic=0.5, gamma=0.5,
        noise=0.5, blur=0.5,
    )  # fmt: skip
    data = MaskFolder(
        str(root), img_size=16, batch_size=2, augmentation=everything, val_fraction=0.2,
        test_fraction=0.2, workers=0,
    )  # fmt: skip

    def epoch(number, workers=0):
        data.workers = workers
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return [torch.cat(parts) for parts in zip(*loader, strict=True)]

    first, other, again = epoch(0), epoch(1), epoch(0, workers)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_evaluation_keeps_the_masks_own_size(make_pairs):
    data = MaskFolder(str(make_pairs()), img_size=16, batch_size=2)
    batch = next(iter(data.val_dataloader()))
    image, mask, case, spacing = batch[0]
    assert image.shape == (3, 16, 16)
    assert mask.shape == (20, 24)
    assert case.startswith("images/")
    assert spacing == (1.0, 1.0)


@pytest.mark.parametrize(("fit", "scale_to", "shape"), [
    ("squash", None, (16, 16)), ("window", None, (20, 24)), ("window", 40, (40, 48)),
])  # fmt: skip
def test_images_are_squashed_or_kept(make_pairs, fit, scale_to, shape):
    data = MaskFolder(str(make_pairs()), img_size=16, fit=fit, scale_to=scale_to)
    assert data.dataset("val")[0][0].shape[1:] == shape
    image, mask = data.dataset("train", augmented=True)[0]
    assert image.shape[1:] == mask.shape == (16, 16)


def test_files_of_many_bands(make_pairs):
    root = make_pairs(8)
    rng = np.random.default_rng(0)
    for path in [*(root / "images").iterdir()]:
        pixels = rng.integers(0, 65536, (20, 24, 6), dtype=np.uint16)
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(path.with_suffix(".tif"), pixels, **options)
        path.unlink()
    data = MaskFolder(str(root), in_chans=6, img_size=16, augmentation="aerial", mean=[0.0] * 6,
                      std=[1.0] * 6)  # fmt: skip
    data.check()
    image, _ = data.dataset("train", augmented=True)[0]
    assert image.shape == (6, 16, 16)
    assert image.min() >= 0
    assert image.max() <= 1
    chosen = MaskFolder(str(root), bands=[3, 2, 1], img_size=20)
    assert chosen.dataset("val")[0][0].shape == (3, 20, 20)


def test_isic_as_downloaded_and_as_rearranged(make_pairs, tmp_path):
    root = tmp_path / "isic"
    for part in ("Training", "Validation", "Test_v2"):
        folder = make_pairs(4, tmp_path / part, values=(0, 255))
        images = root / f"ISIC-2017_{part}_Data"
        masks = root / f"ISIC-2017_{part}_Part1_GroundTruth"
        shutil.move(folder / "images", images)
        shutil.move(folder / "masks", masks)
        for path in [*masks.iterdir()]:
            path.rename(path.with_name(f"{path.stem}_segmentation.png"))
        shutil.copy(images / "0.png", images / "0_superpixels.png")
    data = ISIC(str(root))
    data.check()
    assert {k: len(v) for k, v in data.catalogue.splits.items()} == {
        "train": 4,
        "val": 4,
        "test": 4,
    }
    for split in ("train", "val"):
        make_pairs(4, tmp_path / "vmunet" / split, values=(0, 255))
    other = ISIC(str(tmp_path / "vmunet"))
    other.check()
    assert other.label_values == [0, 255]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_chans": 3, "bands": [1, 2]}, r"bands=\[1, 2\] must name in_chans=3 bands"),
        ({"fold": 5}, "fold=5 must lie in"),
        ({"scale_to": 100}, "scale_to=100 needs fit='window'"),
        ({"in_chans": 3, "mean": [0.5]}, r"mean=\[0.5\] needs 3 values"),
        ({"interpolation": "cubic"}, "interpolation='cubic'"),
        ({"labels": Labels(classes=["a", "b"], values=[1])}, "labels.values has 1 entries for 2"),
        ({"labels": Labels(classes=["a", "b"], values=[0, 255])}, "overlap"),
    ],
)
def test_arguments_that_cannot_be_are_named(make_pairs, arguments, message):
    with pytest.raises(DataError, match=message):
        MaskFolder(str(make_pairs(2)), **arguments).table  # noqa: B018


def test_pairs_whose_accents_are_written_differently_are_one(make_pairs):
    root = make_pairs(6)
    for folder, form in (("images", "NFC"), ("masks", "NFD")):
        for path in [*(root / folder).iterdir()]:
            path.rename(path.with_name(unicodedata.normalize(form, f"bä{path.name}")))
    MaskFolder(str(root)).check()
    shutil.copy(
        root / "images" / "bä1.png", root / "images" / unicodedata.normalize("NFD", "bä1.png")
    )
    with pytest.raises(DataError, match="have the same name"):
        MaskFolder(str(root)).check()


@pytest.mark.parametrize("above", [True, False])
def test_test_images_without_masks_are_in_no_score(make_pairs, tmp_path, above):
    root = tmp_path / "root"
    for split in ("train", "val", "test"):
        make_pairs(3, tmp_path / split)
        for kind in ("images", "masks"):
            if (split, kind) != ("test", "masks"):
                target = root / split / kind if above else root / kind / split
                shutil.copytree(tmp_path / split / kind, target)
    data = MaskFolder(str(root))
    data.check()
    assert sorted(data.catalogue.splits) == ["train", "val"]
    assert any("3 images without masks, not scored" in note for note in data.notes())
    shutil.rmtree(root / "val" / "masks" if above else root / "masks" / "val")
    with pytest.raises(DataError, match="there are no masks for the images in"):
        MaskFolder(str(root)).check()


def test_ignored_pixels_are_counted_and_named(make_pairs):
    data = MaskFolder(str(make_pairs(12, values=(0, 1, 2, 255))))
    # a quarter of the masks is ignored in its upper half
    (note,) = data.notes()
    assert note.startswith("ignored: 720 pixels (12.5%) of value 255 in 3 masks, such as masks/")


def test_other_data_is_scored_by_its_own_values(make_pairs, tmp_path):
    known = Labels(classes=["a", "b"], values=[0, 1])
    data = MaskFolder(str(make_pairs(8, tmp_path / "ones", values=(0, 1))), labels=known)
    assert data.label_values == [0, 1]
    assert "survey" not in data.__dict__
    other = MaskFolder(str(make_pairs(8, tmp_path / "whites", values=(0, 255))), labels=known)
    other.take_whole("test")
    found = [other.dataset("test")[i][1] for i in range(8)]
    assert set(torch.cat([mask.flatten() for mask in found]).tolist()) == {0, 1}


def test_given_splits_may_not_share_a_group(make_pairs, tmp_path):
    for split in ("train", "val"):
        make_pairs(3, tmp_path / "root" / split)
    with pytest.raises(DataError, match="group '0' is in both 'train' and 'val'"):
        MaskFolder(str(tmp_path / "root"), group_pattern=r"(\d)\.png").prepare_data()


def test_the_numbers_of_a_preset_are_kept_with_the_run(make_pairs):
    data = MaskFolder(str(make_pairs()), augmentation="medical")
    kept = data.inferred_settings()["augmentation"]
    assert (kept["hflip"], kept["vflip"], kept["rotate90"], kept["rotate"]) == (0, 0, 0, 15)
    assert MaskedAugmentation(**kept) == data.augmentation
