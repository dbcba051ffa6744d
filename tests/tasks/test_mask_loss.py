import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, FocalLoss

from vimamba.tasks import MaskObjective, TaskError
from vimamba.tasks.segmentation.loss import MaskLoss, lovasz_loss, shrink

NONE = {"ce": 0.0, "dice": 0.0}
LOSSES = [
    MaskObjective(),
    MaskObjective(dice=0),
    MaskObjective(ce=0),
    MaskObjective(**NONE, focal=1),
    MaskObjective(**NONE, lovasz=1),
    MaskObjective(lovasz=0.5, focal=0.5, dice_batch=True, dice_background=False),
]


def problem(classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1 if classes == 2 else classes, 8, 10, generator=generator)
    target = torch.randint(0, classes, (2, 8, 10), generator=generator)
    return logits, target.to(torch.uint8)


def single(objective, logits, target, classes):
    return MaskLoss(objective, classes)([logits], target)


def test_dice_and_cross_entropy_are_monais():
    logits, target = problem(4)
    expected = DiceCELoss(to_onehot_y=True, softmax=True)(logits, target[:, None].long())
    torch.testing.assert_close(single(MaskObjective(), logits, target, 4), expected)
    logits, target = problem(2)
    expected = DiceCELoss(sigmoid=True)(logits, target[:, None].float())
    torch.testing.assert_close(single(MaskObjective(), logits, target, 2), expected)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_focal_loss_is_monais(classes):
    logits, target = problem(classes)
    if classes == 2:
        expected = FocalLoss()(logits, target[:, None].float())
    else:
        focal = FocalLoss(to_onehot_y=True, use_softmax=True, reduction="none")
        expected = focal(logits, target[:, None].long()).sum(1).mean()
    found = single(MaskObjective(**NONE, focal=1), logits, target, classes)
    torch.testing.assert_close(found, expected)


def test_the_lovasz_loss_of_hard_predictions_is_one_minus_the_iou():
    # class 1: 2 of 4 found and 1 false, IoU 2/5; class 0: 3 kept of 4, 2 false, IoU 3/6
    target = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
    answer = torch.tensor([[[0, 0, 0, 1, 0, 0, 1, 1]]])
    probability = F.one_hot(answer, 3).movedim(-1, 1).float()
    valid = torch.ones_like(target, dtype=torch.bool)
    found = lovasz_loss(probability, target, valid)
    assert found.item() == pytest.approx(1 - (2 / 5 + 3 / 6) / 2)
    binary = lovasz_loss(probability[:, 1:2], target, valid)
    assert binary.item() == pytest.approx(1 - 2 / 5)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("objective", LOSSES)
def test_ignored_pixels_do_not_count(objective, classes):
    logits, target = problem(classes)
    target[:, :, 7:] = 255
    logits.requires_grad_(True)
    loss = single(objective, logits, target, classes)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[..., 7:].any()
    assert gradient[..., :7].any()
    cut = single(objective, logits[..., :7], target[..., :7], classes)
    torch.testing.assert_close(loss, cut)
    other = logits.detach().clone()
    other[..., 7:] = 100
    assert single(objective, other, target, classes) == loss


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("objective", LOSSES)
def test_a_batch_of_ignored_or_empty_masks_has_a_finite_loss(objective, classes):
    logits, target = problem(classes)
    logits.requires_grad_(True)
    for value in (255, 0):
        loss = single(objective, logits, torch.full_like(target, value), classes)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_further_outputs_have_weights_and_their_own_size():
    logits, target = problem(3)
    small = torch.randn(2, 3, 4, 5)
    objective = MaskObjective(dice=0, aux_weights=[0.4])
    found = MaskLoss(objective, 3)([logits, small], target)
    nearest = shrink(target, (4, 5)).long()
    expected = F.cross_entropy(logits, target.long()) + 0.4 * F.cross_entropy(small, nearest)
    torch.testing.assert_close(found, expected)
    halves = MaskLoss(MaskObjective(dice=0), 3)([logits, small, small], target)
    rest = F.cross_entropy(small, nearest)
    torch.testing.assert_close(halves, F.cross_entropy(logits, target.long()) + 0.75 * rest)
    with pytest.raises(TaskError, match=r"aux_weights=\[0.4\] has 1 values for 2 outputs"):
        MaskLoss(objective, 3)([logits, small, small], target)


@pytest.mark.parametrize("classes", [2, 4])
def test_class_weights_are_those_of_torch(classes):
    logits, target = problem(classes)
    target[0, 0] = 255
    weights = [0.5, 2.0, 3.0, 0.1][:classes]
    objective = MaskObjective(dice=0, class_weights=weights)
    both = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 2 else logits
    expected = F.cross_entropy(both, target.long(), torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(single(objective, logits, target, classes), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ce": 0.0, "dice": 0.0}, "one must be above 0"),
        ({"ce": -1.0}, "none below"),
        ({"class_weights": "even"}, "class_weights='even'"),
        ({"class_weights": [1.0]}, "1 values for 3 classes"),
    ],
)
def test_objectives_that_cannot_be_are_named(arguments, message):
    with pytest.raises(TaskError, match=message):
        MaskLoss(MaskObjective(**arguments), 3)
