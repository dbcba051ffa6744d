"""Published aerial data sets, with their file names and labels."""

import numpy as np
import pytest
from PIL import Image

from vimamba.data import AerialFolder, ClassificationData, DataError, ImageFolder
from vimamba.data.masked.aerial import ISAID, ISPRS, NAMINGS
from vimamba.labels import IGNORE

SIDE = 8


def write(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((SIDE, SIDE, 3), 90) if values is None else values
    Image.fromarray(np.asarray(values).astype(np.uint8)).save(path)


def painted(colors):
    """One row of each color; the last one fills the rest."""
    rows = np.asarray(list(colors.values()))[np.arange(SIDE).clip(max=len(colors) - 1)]
    return np.repeat(rows[:, None], SIDE, axis=1)


def splits(data):
    return {split: len(items) for split, items in data.catalogue.splits.items()}


def mask_of(data, split="train"):
    item = data.items(split)[0]
    return data.table.indices(item.mask(), item.mask_name)


def test_loveda_has_urban_and_rural_images_of_one_name_and_0_counts_nowhere(tmp_path):
    values = np.arange(SIDE)[:, None].repeat(SIDE, axis=1)
    for split in ("Train", "Val", "Test"):
        for area in ("Urban", "Rural"):
            for number in range(2):
                write(tmp_path / split / area / "images_png" / f"{number}.png")
                if split != "Test":
                    write(tmp_path / split / area / "masks_png" / f"{number}.png", values)
    data = AerialFolder(str(tmp_path), layout="loveda", img_size=SIDE)
    data.check()
    assert splits(data) == {"train": 4, "val": 4}
    assert data.num_classes == 7
    assert mask_of(data)[:, 0].tolist() == [IGNORE, *range(7)]
    assert any("4 images without masks" in note for note in data.notes())


def test_potsdam_and_vaihingen_are_divided_as_in_the_contest(tmp_path):
    for name in ("2_10", "6_7", "7_12", "2_13", "7_13"):
        write(tmp_path / "p" / "2_Ortho_RGB" / f"top_potsdam_{name}_RGB.tif")
        write(tmp_path / "p" / "5_Labels_all" / f"top_potsdam_{name}_label.tif", painted(ISPRS))
    for number in (1, 3, 2, 38):
        write(tmp_path / "v" / "top" / f"top_mosaic_09cm_area{number}.tif")
        write(tmp_path / "v" / f"top_mosaic_09cm_area{number}.tif", painted(ISPRS))
    for layout, counts in (("potsdam", (3, 2)), ("vaihingen", (2, 2))):
        data = AerialFolder(
            str(tmp_path / layout[0]), layout=layout, img_size=SIDE, val_fraction=0.0
        )
        data.check()
        assert splits(data) == dict(zip(("train", "test"), counts, strict=True))
        assert data.class_names == list(ISPRS)
        assert mask_of(data)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]
    assert len(NAMINGS["potsdam"].train) == 24
    tiled = AerialFolder(str(tmp_path / "p"), layout="potsdam", img_size=4, tile=4)
    tiled.check()
    assert splits(tiled) == {"train": 8, "val": 4, "test": 8}
    assert len({item.group for item in tiled.items("val")}) == 1
    assert [mask_of(tiled, "test")[:, 0].tolist(), mask_of(tiled, "test").shape] == [
        [0, 1, 2, 3],
        (4, 4),
    ]
    assert tiled.dataset("test")[2][1][:, 0].tolist() == [4, 5, 5, 5]
    assert len(NAMINGS["vaihingen"].train) == 16
    (tmp_path / "v" / "top_mosaic_09cm_area3.tif").unlink()
    with pytest.raises(DataError, match=r"without a mask in .*: 3$"):
        splits(AerialFolder(str(tmp_path / "v"), layout="vaihingen"))


def test_crops_of_isaid_are_in_color_or_in_numbers(tmp_path):
    colors = painted(dict(list(ISAID.items())[:SIDE]))
    for split, numbers in (("train", False), ("val", True)):
        for number in range(2):
            name = f"P000{number}_0_896_0_896"
            write(tmp_path / split / "images" / f"{name}.png")
            target = tmp_path / split / "Semantic_masks" / "images"
            values = np.arange(SIDE)[:, None].repeat(SIDE, axis=1) if numbers else colors
            write(target / f"{name}_instance_color_RGB.png", values)
    data = AerialFolder(str(tmp_path), layout="isaid", img_size=SIDE)
    assert splits(data) == {"train": 2, "val": 2}
    for split in ("train", "val"):
        assert mask_of(data, split)[:, 0].tolist() == list(range(SIDE))


def test_a_folder_of_another_data_set_is_refused(tmp_path):
    write(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match="has no image whose path matches"):
        splits(AerialFolder(str(tmp_path), layout="potsdam"))
    with pytest.raises(DataError, match=r"layout='dubai' is unknown; choose from \['isaid'"):
        AerialFolder(str(tmp_path), layout="dubai")


@pytest.mark.parametrize(
    ("folder", "ending"),
    [("UCMerced_LandUse/Images", "tif"), ("NWPU-RESISC45", "jpg"), ("AID", "jpg")],
)
def test_scenes_of_one_class_are_plain_folders(tmp_path, folder, ending):
    for name in ("Airport", "BareLand"):
        for number in range(8):
            write(tmp_path / folder / name / f"{name.lower()}_{number}.{ending}")
    data = ImageFolder(str(tmp_path / folder), img_size=SIDE)
    assert isinstance(data, ClassificationData)
    assert data.class_names == ["Airport", "BareLand"]
    assert sum(splits(data).values()) == 16
