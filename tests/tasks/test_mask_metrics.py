import math

import numpy as np
import pytest
import torch

from vimamba.labels import IGNORE
from vimamba.tasks.segmentation.metrics import (
    CaseTable,
    case_scores,
    class_scores,
    confusion_counts,
    without_borders,
)


def test_scores_of_counts_agree_with_a_hand_calculation():
    # 10 pixels of background, 5 of a, none of b; b is never predicted
    confusion = torch.tensor([[8, 2, 0], [1, 4, 0], [0, 0, 0]])
    report = class_scores(confusion, ["background", "a", "b"], background=True)
    assert report["dice"] == pytest.approx(2 * 4 / (5 + 6))
    assert report["miou"] == pytest.approx((8 / 11 + 4 / 7) / 2)
    assert report["accuracy"] == pytest.approx(12 / 15)
    assert report["per_class"][1] == pytest.approx(
        {"class": "a", "pixels": 5, "dice": 8 / 11, "iou": 4 / 7, "precision": 4 / 6, "recall": 0.8}
    )
    assert report["per_class"][2]["dice"] is None
    whole = class_scores(confusion, ["x", "a", "b"], background=False)
    assert whole["dice"] == pytest.approx((16 / 19 + 8 / 11) / 2)


def test_counts_leave_out_what_is_ignored_on_either_side():
    truth = np.array([[0, 1, 1], [2, IGNORE, 2]], dtype=np.uint8)
    found = np.array([[0, 1, 0], [IGNORE, 2, 1]], dtype=np.uint8)
    assert confusion_counts(truth, found, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_a_class_that_is_only_said_has_no_score_and_counts_against_the_others():
    confusion = torch.tensor([[3, 1, 0], [0, 4, 1], [0, 0, 0]])
    report = class_scores(confusion, ["background", "a", "b"], background=True)
    assert report["dice"] == pytest.approx(2 * 4 / (5 + 5))
    assert report["miou"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    row = {"class": "b", "pixels": 0, "dice": None, "iou": None, "precision": None, "recall": None}
    assert report["per_class"][2] == row
    alone = class_scores(torch.tensor([[3, 1], [0, 0]]), ["background", "a"], background=True)
    assert alone["dice"] is None


def test_a_class_that_means_leave_out_counts_against_the_others():
    # of 9 pixels of clutter 3 were taken for a; 1 of a and 2 of b were taken for clutter
    confusion = torch.tensor([[8, 1, 1], [0, 6, 2], [3, 0, 6]])
    report = class_scores(confusion, ["a", "b", "clutter"], background=False, left_out=["clutter"])
    assert report["dice"] == pytest.approx((2 * 8 / (10 + 11) + 2 * 6 / (8 + 7)) / 2)
    assert report["miou"] == pytest.approx((8 / 13 + 6 / 9) / 2)
    assert report["accuracy"] == pytest.approx(20 / 27)
    assert report["per_class"][2]["dice"] == pytest.approx(12 / 18)
    table = CaseTable(["a", "b", "clutter"], background=False, tolerance=1, left_out=["clutter"])
    assert list(table.parts) == ["a", "b"]


def test_a_border_is_as_wide_as_said_on_either_side():
    truth = np.zeros((5, 12), dtype=np.uint8)
    truth[:, 4:] = 1
    # the columns 1 to 3 are 3, 2 and 1 from class 1, the columns 4 to 6 the same from class 0
    wanted = truth.copy()
    wanted[:, 1:7] = IGNORE
    np.testing.assert_array_equal(without_borders(truth, 3), wanted)
    np.testing.assert_array_equal(without_borders(truth, 0), truth)
    # neither ignored pixels nor the image edge are borders
    truth[:, 4:] = IGNORE
    np.testing.assert_array_equal(without_borders(truth, 3), truth)


def test_a_border_is_a_disc():
    truth = np.full((9, 9), 4, dtype=np.uint8)
    truth[4, 4] = 1
    rows, columns = np.nonzero(without_borders(truth, 3) == IGNORE)
    # 1 + 4 * 3 along the axes, 4 * 4 beside them: (1, 1), (1, 2), (2, 1), (2, 2), but not (3, 1)
    assert len(rows) == 29
    assert ((rows - 4) ** 2 + (columns - 4) ** 2).max() == 9


def test_a_class_that_is_in_no_case_is_left_out_of_the_means_over_cases():
    cases = CaseTable(["background", "a", "b"], background=True, tolerance=1)
    found = square(5, 5, 6)
    found[0, 0] = 2
    cases.add("case", found, square(5, 5, 6), (1, 1))
    cases.close()
    means, per_class = cases.means()
    assert means["dice"] == 1
    assert per_class[1] == {
        "class": "b", "cases": 0, "dice": None, "hd95": None, "surface_dice": None,
    }  # fmt: skip
    # for the case alone, the prediction is wrong
    assert [row["dice"] for row in cases.rows] == [1, 0]


def square(top, left, side, size=(20, 20)):
    mask = np.zeros(size, dtype=np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_distances_of_shifted_squares_are_the_shift():
    # 6 x 6 squares, 3 columns apart: they share 6 x 3 pixels
    (row,) = case_scores(square(5, 8, 6), square(5, 5, 6), [1], (1, 1), 2)
    assert row["dice"] == pytest.approx(2 * 18 / 72)
    assert row["hd95"] == pytest.approx(3)
    (wide,) = case_scores(square(5, 8, 6), square(5, 5, 6), [1], (1, 0.5), 2)
    assert wide["hd95"] == pytest.approx(1.5)
    assert wide["surface_dice"] == 1  # nothing is farther than 1.5 away
    # each outline has 20 pixels; those of the far column and, at 3 > 2, its neighbors are missed
    assert 0 < row["surface_dice"] < 1
    (strict,) = case_scores(square(5, 8, 6), square(5, 5, 6), [1], (1, 1), 3)
    assert strict["surface_dice"] == 1


def test_surface_dice_agrees_with_a_count_by_hand():
    # lines of 4 and of 6 pixels, the first in the second: all of 4 and 4 + 2 within 1, of 6
    found, truth = np.zeros((5, 12), np.uint8), np.zeros((5, 12), np.uint8)
    found[2, 3:7] = 1
    truth[2, 3:10] = 1
    (row,) = case_scores(found, truth, [1], (1, 1), 1.0)
    # of the truth's 7 pixels those at distance 2 and 3 are too far
    assert row["surface_dice"] == pytest.approx((4 + 5) / (4 + 7))


def test_empty_masks_are_handled_as_documented():
    empty, full = np.zeros((20, 20), np.uint8), square(5, 5, 6)
    diagonal = math.hypot(20, 20)
    assert case_scores(empty, empty, [1], (1, 1), 1) == [
        {"dice": None, "hd95": None, "surface_dice": None}
    ]
    for pair in ((empty, full), (full, empty)):
        (row,) = case_scores(*pair, [1], (1, 1), 1)
        assert row == {"dice": 0, "hd95": pytest.approx(diagonal), "surface_dice": 0}


def test_ignored_pixels_belong_to_no_class():
    truth = square(5, 5, 6)
    truth[:, 11:] = 255
    found = square(5, 5, 6)
    found[:, 11:] = 1
    assert case_scores(found, truth, [1], (1, 1), 1)[0]["dice"] == 1


def test_slices_are_scored_as_one_volume():
    table = CaseTable(["background", "a"], background=True, tolerance=1)
    truth, empty = square(5, 5, 6), square(0, 0, 0)
    # the volume has 2 of its 3 slices found and one false one: 2 * 36 * 2 / (3 + 3) / 36
    for case in ("first", "second"):
        for found, wanted in ((truth, truth), (truth, truth), (empty, truth), (truth, empty)):
            table.add(case, found, wanted, (4.0, 1.0, 1.0))
    table.add("nothing", empty, empty, (4.0, 1.0, 1.0))
    table.close()
    assert [row["case"] for row in table.rows] == ["first", "second", "nothing"]
    assert table.rows[0]["dice"] == pytest.approx(4 / 6)
    assert table.rows[0]["hd95"] == pytest.approx(4)  # one slice
    means, per_class = table.means()
    assert means["dice"] == pytest.approx(4 / 6)
    assert per_class == [{"class": "a", "cases": 2, **means}]
