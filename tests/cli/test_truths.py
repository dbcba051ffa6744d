"""True masks are read at their positions and by their own values."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from vimamba.data import DataError
from vimamba.data.masked.labels import LabelTable
from vimamba.tasks.segmentation.jobs import Job, find_jobs
from vimamba.tasks.segmentation.scores import fit_truths, open_truth

ONES = LabelTable(["background", "cell"], [0, 1], 255)


@pytest.fixture
def cases(tmp_path):
    """Images 0 to 3 and true masks, whose object has the given values."""

    def make(*values):
        jobs, truths = [], {}
        for number, value in enumerate(values):
            image, mask = tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"
            Image.new("RGB", (8, 6)).save(image)
            Image.fromarray(np.eye(6, 8, dtype=np.uint8) * np.uint8(value)).save(mask)
            jobs.append(Job((image,), str(number)))
            truths[str(number)] = mask
        return jobs, truths

    return make


def test_true_masks_are_read_by_their_own_values(cases, capsys):
    table = fit_truths(ONES, *cases(255, 255), align=False)
    assert (table.values, table.ignore) == ([0, 255], -1)
    assert "true masks hold [0, 255] for ['background', 'cell']" in capsys.readouterr().out
    assert fit_truths(ONES, *cases(1, 1), align=False) is ONES
    whites = LabelTable(["background", "cell"], [0, 255], -1)
    assert fit_truths(whites, *cases(1, 1), align=False).values == [0, 1]
    with pytest.raises(DataError, match=r"some masks hold 0 and 1, such as 0_mask\.png"):
        fit_truths(ONES, *cases(1, 255), align=False)
    three = LabelTable(["a", "b", "c"], [0, 1, 2], 255)
    assert fit_truths(three, *cases(2, 255), align=False) is three
    assert "true masks, ignored: 6 pixels (6.2%) of value 255" in capsys.readouterr().out


def test_a_true_volume_must_lie_where_its_image_lies(tmp_path):
    truth = np.zeros((8, 6, 4), np.uint8)
    truth[2:4] = 1
    nibabel.save(nibabel.Nifti1Image(truth, np.eye(4)), tmp_path / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(truth[2:], np.eye(4)), tmp_path / "lost.nii.gz")
    there = np.eye(4)
    there[0, 3] = 2
    nibabel.save(nibabel.Nifti1Image(truth[2:], there), tmp_path / "part.nii.gz")
    job = Job((tmp_path / "a.nii.gz",), "a")
    for name in ("lost", "part"):
        with pytest.raises(
            DataError, match=rf"{name}.nii.gz \(6 x 6 x 4 voxels .* is not on the grid"
        ):
            open_truth(job, tmp_path / f"{name}.nii.gz", align=False)
    found = open_truth(job, tmp_path / "part.nii.gz", align=True)
    expected = open_truth(job, tmp_path / "a.nii.gz", align=False)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.mask(), other.mask())


def test_volumes_in_a_list_keep_their_names(tmp_path):
    for name in ("c0.nii.gz", "c1.nii", "d.e.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text("image\nc0.nii.gz\nc1.nii\nd.e.png\n")
    assert [job.name for job in find_jobs([tmp_path / "list.csv"], 1)] == ["c0", "c1", "d.e"]
