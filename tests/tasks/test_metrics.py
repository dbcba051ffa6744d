import pytest
import torch

from vimamba.tasks.classification.metrics import (
    classification_metrics,
    compute_report,
    confusion_scores,
)


def test_scores_of_a_confusion_matrix_agree_with_a_hand_calculation():
    # class a: 8 of 10 found, class b: 3 of 5, class c never occurs
    confusion = torch.tensor([[8, 2, 0], [1, 3, 1], [0, 0, 0]])
    scores, rows = confusion_scores(confusion)
    assert scores["accuracy"] == pytest.approx(11 / 15)
    assert scores["balanced_accuracy"] == pytest.approx((0.8 + 0.6) / 2)
    # F1 = 2 hits / (2 hits + missed + false)
    assert scores["macro_f1"] == pytest.approx((16 / 19 + 6 / 10) / 2)
    assert rows[0] == pytest.approx(
        {"images": 10, "precision": 8 / 9, "recall": 0.8, "f1": 16 / 19}
    )
    assert rows[2] == {"images": 0, "precision": None, "recall": None, "f1": None}


def test_classes_that_cannot_be_scored_are_left_out_of_means():
    torch.manual_seed(0)
    target = torch.arange(40) % 2
    probabilities = torch.rand(40, 3).softmax(-1)
    metrics = classification_metrics(3, multi_label=False)
    metrics.update(probabilities, target)
    report = compute_report(metrics, list("abc"))
    # correctly ordered pairs of an image with the class and one without
    aurocs = []
    for label in (0, 1):
        own, other = probabilities[target == label, label], probabilities[target != label, label]
        aurocs.append((own[:, None] > other[None]).double().mean())
    assert report["auroc"] == pytest.approx(float(sum(aurocs) / 2))
    assert report["per_class"][2] == {
        "class": "c", "images": 0, "precision": None, "recall": None, "f1": None,
    }  # fmt: skip


def test_a_label_that_all_images_have_or_none_has_no_ranking():
    metrics = classification_metrics(3, multi_label=True)
    probabilities = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.7, 0.9], [0.6, 0.9, 0.2]])
    metrics.update(probabilities, torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 0]]))
    report = compute_report(metrics, list("abc"))
    assert report["auroc"] == 1  # of the first label alone
    assert report["balanced_accuracy"] == 1
    assert report["macro_f1"] == 1  # of the first two
    assert report["per_class"][2]["f1"] is None


def test_scores_without_any_class_are_none_and_not_0():
    metrics = classification_metrics(2, multi_label=False)
    metrics.update(torch.tensor([[0.6, 0.4], [0.7, 0.3]]), torch.tensor([0, 0]))
    report = compute_report(metrics, ["a", "b"])
    assert report["auroc"] is None
    assert report["accuracy"] == report["balanced_accuracy"] == 1


def test_binary_and_multi_class_scores():
    metrics = classification_metrics(2, multi_label=False)
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
    metrics.update(probabilities, torch.tensor([0, 0, 1, 1]))
    report = compute_report(metrics, ["no", "yes"])
    assert report["accuracy"] == 0.5
    assert report["confusion"] == [[1, 1], [1, 1]]
    # of the four pairs (0.1, 0.6) x (0.8, 0.3) three are in order
    assert report["auroc"] == pytest.approx(0.75)
    # confidences 0.9 right, 0.6 wrong, 0.8 right, 0.7 wrong, each in a separate bin
    assert report["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.7) / 4)
    assert "top5" not in report


def test_top_5_is_scored_where_there_are_more_than_five_classes():
    metrics = classification_metrics(6, multi_label=False)
    probabilities = torch.tensor([[0.3, 0.25, 0.2, 0.15, 0.08, 0.02]] * 2)
    metrics.update(probabilities, torch.tensor([4, 5]))
    report = compute_report(metrics, list("abcdef"))
    assert report["top5"] == 0.5
    assert report["accuracy"] == 0.0


def test_multi_label_scores():
    metrics = classification_metrics(2, multi_label=True)
    probabilities = torch.tensor([[0.9, 0.2], [0.8, 0.7], [0.1, 0.6], [0.3, 0.1]])
    target = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0]])
    metrics.update(probabilities, target)
    report = compute_report(metrics, ["a", "b"])
    assert report["confusion"] == [[[1, 0], [1, 2]], [[2, 1], [0, 1]]]
    assert report["accuracy"] == pytest.approx(6 / 8)
    assert report["exact_match"] == pytest.approx(0.5)
    # class a: recall 2/3, specificity 1; class b: recall 1, specificity 2/3
    assert report["balanced_accuracy"] == pytest.approx(5 / 6)
    assert report["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert report["auroc"] == pytest.approx(1.0)
    assert [row["images"] for row in report["per_class"]] == [3, 1]
