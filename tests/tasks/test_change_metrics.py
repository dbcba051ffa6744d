"""Change scores against values computed by hand."""

import math

import pytest
import torch

from vimamba.tasks.change.metrics import (
    change_scores,
    damage_scores,
    kappa_score,
    per_class,
    semantic_scores,
)


def test_scores_of_binary_change_are_those_of_the_changed_class():
    found = change_scores(torch.tensor([[80, 5], [3, 12]]))
    assert found["precision"] == pytest.approx(12 / 17)
    assert found["recall"] == pytest.approx(12 / 15)
    assert found["f1"] == pytest.approx(24 / 32)
    assert found["iou"] == pytest.approx(12 / 20)
    assert found["accuracy"] == pytest.approx(0.92)
    chance = (85 * 83 + 15 * 17) / 100**2
    assert found["kappa"] == pytest.approx((0.92 - chance) / (1 - chance))


def test_nothing_changed_and_nothing_found_has_no_f1():
    found = change_scores(torch.tensor([[50, 0], [0, 0]]))
    assert found["f1"] is found["iou"] is found["recall"] is found["kappa"] is None
    assert found["accuracy"] == 1
    assert change_scores(torch.tensor([[50, 3], [0, 0]]))["f1"] == 0


def test_semantic_scores_are_those_of_second():
    # rows truth, columns prediction; 0 unchanged
    table = torch.tensor([[70, 4, 2], [3, 10, 1], [1, 2, 7]])
    found = semantic_scores(table)
    unchanged, changed = 70 / (76 + 74 - 70), (10 + 1 + 2 + 7) / (100 - 70)
    assert found["miou"] == pytest.approx((unchanged + changed) / 2)
    # without the 70: 30 pixels, 17 agree; rows 6, 14, 10, columns 4, 16, 10
    chance = (6 * 4 + 14 * 16 + 10 * 10) / 30**2
    kappa = (17 / 30 - chance) / (1 - chance)
    assert found["sek"] == pytest.approx(kappa * math.exp(changed) / math.e)
    precision, recall = 17 / 26, 17 / 24
    assert found["fscd"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["score"] == pytest.approx(0.3 * found["miou"] + 0.7 * found["sek"])


def test_semantic_scores_do_not_depend_on_the_order_of_classes():
    table = torch.randint(1, 50, (5, 5), generator=torch.Generator().manual_seed(0))
    order = torch.tensor([0, 3, 1, 4, 2])
    shuffled = table[order][:, order]
    assert semantic_scores(table) == pytest.approx(semantic_scores(shuffled))
    assert semantic_scores(table)["sek"] == pytest.approx(semantic_scores(table.T)["sek"])


def test_the_score_of_damage_is_that_of_xview2():
    building = torch.tensor([[90, 10], [5, 45]])
    # truth on buildings only; predictions may be "no building", the first column
    damage = torch.tensor(
        [[0, 0, 0, 0, 0], [2, 18, 0, 0, 0], [1, 3, 6, 0, 0], [1, 0, 1, 8, 0], [1, 0, 0, 1, 8]]
    )
    found = damage_scores(building, damage)
    levels = [2 * 18 / (20 + 21), 2 * 6 / (10 + 7), 2 * 8 / (10 + 9), 2 * 8 / (10 + 8)]
    assert found["f1_building"] == pytest.approx(90 / 105)
    assert found["f1_damage"] == pytest.approx(4 / sum(1 / level for level in levels))
    assert found["score"] == pytest.approx(0.3 * 90 / 105 + 0.7 * found["f1_damage"])


def test_one_level_of_damage_that_is_never_found_makes_the_mean_zero():
    damage = torch.diag(torch.tensor([0, 5, 5, 5, 5]))
    damage[4, 4], damage[4, 1] = 0, 5
    assert damage_scores(torch.eye(2), damage)["f1_damage"] == 0
    # but a class that does not occur is not counted
    damage[4] = 0
    assert damage_scores(torch.eye(2), damage)["f1_damage"] == 1


def test_undefined_scores_of_classes_are_none():
    rows = per_class(torch.tensor([[4, 0, 0], [1, 3, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert rows[1] == {
        "class": "b", "pixels": 4, "f1": pytest.approx(6 / 7), "iou": 0.75, "precision": 1.0,
        "recall": 0.75,
    }  # fmt: skip
    assert rows[2]["f1"] is None
    assert kappa_score(torch.eye(3)) == 1
