"""Files of one case have the same geometry, or are resampled to it, or are rejected."""

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from vimamba.data import DataError, Intensity, Labels, MaskCSV, MaskFolder, NiftiSlices
from vimamba.data.geometry import raster_grid
from vimamba.data.masked.nifti import cut_volume
from vimamba.data.volume_files import open_volume

LPS = np.diag([-0.8, -0.8, 3.0, 1.0])
WINDOW = Intensity(window=(-100, 200))


def moved(affine, *by):
    there = affine.copy()
    there[:3, 3] += by
    return there


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.eye(4)
    rotation[:2, :2] = [[c, -s], [s, c]]
    return rotation @ LPS


def make_cases(root, mask_affine, image_affine=LPS, count=4):
    """Volumes that are 110 inside the mask and -80 around it."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    mask = np.zeros((24, 20, 6), np.uint8)
    mask[3:9, 4:9, 1:4] = 1
    image = np.where(mask == 1, 110, -80).astype(np.int16)
    for k in range(count):
        nibabel.save(nibabel.Nifti1Image(image, image_affine), root / f"images/{k}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, mask_affine), root / f"masks/{k}.nii.gz")
    return root


def mean_inside(data):
    inside = [i.image()[..., 0][i.mask() == 1] for i in data.catalogue.splits["train"]]
    return float(np.concatenate(inside).mean())


@pytest.mark.parametrize(
    ("mask_affine", "said"),
    [
        (np.eye(4), r"24 x 20 x 6 voxels of 1 x 1 x 1 mm, axes RAS, the first at \(0, 0, 0\)"),
        (moved(LPS, 50, 0, 0), r"the first at \(50, 0, 0\)"),
        (moved(LPS, 0, 0.4, 0), r"the first at \(0, 0.4, 0\)"),
        (LPS @ np.diag([3, 3, 3, 1]), "2.4 x 2.4 x 9 mm"),
        (turned(8), "turned by"),
        (np.diag([0.8, -0.8, 3, 1]), "axes RPS"),
    ],
)
def test_a_mask_that_lies_elsewhere_is_refused_with_both_places(tmp_path, mask_affine, said):
    data = NiftiSlices(str(make_cases(tmp_path, mask_affine)), intensity=WINDOW)
    with pytest.raises(
        DataError, match=rf"masks/0.nii.gz \(.*{said}.* is not on the grid"
    ) as error:
        data.prepare_data()
    assert "images/0.nii.gz (24 x 20 x 6 voxels of 0.8 x 0.8 x 3 mm, axes LPS" in str(error.value)


def test_headers_may_differ_by_rounding_and_by_the_order_of_their_axes(tmp_path):
    rounded = LPS + 1e-4 * np.sin(np.arange(16).reshape(4, 4)) * (np.arange(4) < 3)[:, None]
    assert mean_inside(NiftiSlices(str(make_cases(tmp_path / "a", rounded)))) == 110
    root = make_cases(tmp_path / "b", LPS)
    for path in (root / "masks").iterdir():
        stored = nibabel.load(path)
        nibabel.save(nibabel.as_closest_canonical(stored), path)
    assert mean_inside(NiftiSlices(str(root))) == 110
    # halfway between two orders of axes, rounding must not reorient only one of the files
    wobbly = turned(45) @ np.diag([1, 1 + 1e-7, 1, 1])
    root = make_cases(tmp_path / "c", wobbly, turned(45))
    assert mean_inside(NiftiSlices(str(root))) == 110


def test_a_mask_is_brought_onto_its_image_where_that_is_wished(tmp_path):
    root = make_cases(tmp_path, LPS)
    finer = LPS @ np.diag([0.5, 0.5, 0.5, 1])
    for path in (root / "masks").iterdir():
        values = np.asarray(nibabel.load(path).dataobj)
        fine = values.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        # a voxel of the coarse grid has two finer ones on each side of its center
        there = moved(finer, *(LPS[:3, :3] @ np.full(3, -0.25)))
        nibabel.save(nibabel.Nifti1Image(fine, there), path)
    data = NiftiSlices(str(root), align=True, val_fraction=0, test_fraction=0)
    data.survey  # noqa: B018
    assert mean_inside(data) == 110
    assert sum((i.mask() == 1).sum() for i in data.catalogue.splits["train"]) == 4 * 90


def test_a_channel_is_brought_onto_the_first_one_linearly(tmp_path):
    ramp = np.arange(8, dtype=np.float32)[:, None, None] + np.zeros((8, 6, 4), np.float32)
    nibabel.save(nibabel.Nifti1Image(ramp, np.eye(4)), tmp_path / "a_0000.nii")
    nibabel.save(nibabel.Nifti1Image(ramp, moved(np.eye(4), 0.5, 0, 0)), tmp_path / "a_0001.nii")
    paths = [tmp_path / "a_0000.nii", tmp_path / "a_0001.nii"]
    with pytest.raises(DataError, match=r"a_0001.nii \(.* is not on the grid of .*a_0000.nii"):
        cut_volume(paths, None, "axial", tmp_path)
    image = cut_volume(paths, None, "axial", tmp_path, align=True)[0].image()
    # columns run to the left, as the ramp runs to the right
    np.testing.assert_allclose(image[0, ::-1, 0], np.arange(8))
    np.testing.assert_allclose(image[0, ::-1, 1], [0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    far = nibabel.Nifti1Image(ramp, moved(np.eye(4), 500, 0, 0))
    nibabel.save(far, tmp_path / "b_0001.nii")
    with pytest.raises(DataError, match="does not overlap"):
        cut_volume([paths[0], tmp_path / "b_0001.nii"], None, "axial", tmp_path, align=True)


def save_header(path, **fields):
    """A volume with a given header."""
    header = nibabel.Nifti1Image(np.zeros((8, 8, 4), np.int16), np.eye(4)).header
    for name, value in fields.items():
        header[name] = value
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(header.binaryblock + bytes(4) + bytes(8 * 8 * 4 * 2))


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 1, "srow_x": [1, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 0, 0]},
        {"sform_code": 1, "srow_x": [1, 0, 0, 0], "srow_y": [1, 0, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"sform_code": 1, "srow_x": [np.nan, 0, 0, 0]},
        {"qform_code": 1, "sform_code": 0, "pixdim": [1, 0, 1, 1, 1, 1, 1, 1]},
        {"qform_code": 0, "sform_code": 0, "pixdim": [1, 0, 0, 0, 1, 1, 1, 1]},
        {"qform_code": 1, "sform_code": 0, "quatern_b": 2.0},
    ],
)
def test_an_affine_that_tells_no_place_is_named(tmp_path, fields):
    save_header(tmp_path / "a.nii", **fields)
    with pytest.raises(DataError, match=r"a\.nii (has no usable location|cannot be read)"):
        open_volume(tmp_path / "a.nii")


def test_of_two_affines_the_sform_counts_and_that_is_said(tmp_path):
    root = make_cases(tmp_path, LPS)
    for path in (root / "images").iterdir():
        image = nibabel.load(path)
        image.set_sform(LPS, code=1)
        image.set_qform(moved(LPS, 30, 0, 0), code=1)
        nibabel.save(image, path)
    data = NiftiSlices(str(root))
    assert mean_inside(data) == 110
    (note,) = (note for note in data.notes() if "qform" in note)
    assert note.startswith("the qform and the sform of 4 volumes differ; the sform is used")


def write_geotiff(
    path, pixels, *, left=600000.0, top=5000000.0, step=10.0, epsg=32632, point=False
):
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2 if point else 1, 3072, 0, 1, epsg)
    place = (left, top) if not point else (left + step / 2, top - step / 2)
    tags = [
        (33550, "d", 3, (step, step, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, *place, 0.0), True),
        (34735, "H", len(keys), keys, True),
    ]
    tifffile.imwrite(path, pixels, extratags=tags)


def test_geotiff_grids_are_read_and_compared(tmp_path):
    pixels = np.zeros((6, 8), np.uint8)
    write_geotiff(tmp_path / "a.tif", pixels)
    write_geotiff(tmp_path / "point.tif", pixels, point=True)
    tifffile.imwrite(
        tmp_path / "matrix.tif",
        pixels,
        extratags=[
            (34264, "d", 16, (10.0, 0, 0, 6e5, 0, -10.0, 0, 5e6, 0, 0, 0, 0, 0, 0, 0, 1.0), True)
        ],
    )
    write_geotiff(tmp_path / "moved.tif", pixels, left=600010.0)
    write_geotiff(tmp_path / "other.tif", pixels, epsg=32633)
    tifffile.imwrite(tmp_path / "plain.tif", pixels)
    grid = raster_grid(tmp_path / "a.tif")
    assert "6 x 8 pixels of 10 x 10 map units" in grid.text
    assert "corner at (600000, 5000000), EPSG:32632" in grid.text
    agrees = {
        name: grid.agrees(raster_grid(tmp_path / f"{name}.tif"))
        for name in ("point", "matrix", "moved", "other")
    }
    assert agrees == {"point": True, "matrix": True, "moved": False, "other": False}
    assert raster_grid(tmp_path / "plain.tif") is None


@pytest.mark.parametrize("as_list", [False, True])
def test_a_geotiff_mask_that_lies_elsewhere_is_refused_or_aligned(tmp_path, as_list):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    lines = ["image,mask"]
    for k in range(6):
        mask = np.zeros((12, 12), np.uint8)
        mask[4:9, 5:10] = 1
        write_geotiff(tmp_path / f"images/{k}.tif", np.repeat(mask[..., None] * 200, 3, 2))
        # the mask starts two columns and one row later
        write_geotiff(tmp_path / f"masks/{k}.tif", mask[1:, 2:], left=600020.0, top=4999990.0)
        lines.append(f"images/{k}.tif,masks/{k}.tif")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    kind, root = (MaskCSV, tmp_path / "list.csv") if as_list else (MaskFolder, tmp_path)
    with pytest.raises(DataError, match=r"masks/0.tif \(11 x 10 pixels .* is not on the grid of"):
        kind(str(root)).check()
    data = kind(str(root), align=True)
    data.check()
    item = data.catalogue.splits["train"][0]
    np.testing.assert_array_equal(item.mask() > 0, item.image()[..., 0] > 0)
    write_geotiff(tmp_path / "masks/3.tif", np.ones((12, 12), np.uint8), epsg=4326)
    with pytest.raises(DataError, match=r"masks/3.tif \(.*EPSG:4326\) has another CRS than"):
        kind(str(root), align=True).check()


def test_files_that_do_not_say_where_they_lie_need_the_same_size_only(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for k in range(6):
        write_geotiff(tmp_path / f"images/{k}.tif", np.zeros((6, 8, 3), np.uint8))
        Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(tmp_path / f"masks/{k}.png")
    MaskFolder(str(tmp_path), labels=Labels(classes=["a", "b"])).check()
