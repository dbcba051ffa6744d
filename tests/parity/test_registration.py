"""Warping, losses and metrics of registration against results of MambaMorph's code."""

import numpy as np
import pytest
import torch

from tests.parity.official import HERE, fill
from vimamba.networks.registration import (
    integrate_velocity,
    jacobian_determinant,
    resize_flow,
    warp,
)

pytest.importorskip("monai", reason="losses and metrics need the extra medical")
from vimamba.tasks.registration import loss as losses
from vimamba.tasks.registration import metrics

ARRAYS = dict(np.load(HERE / "op_registration.npz"))
SIZES = {2: (7, 10), 3: (5, 7, 6)}


def made(shape, name):
    return torch.from_numpy(fill.fill_input(shape, name)).double()


def assert_recorded(ours, key, tolerance=1e-6):
    expected = torch.from_numpy(np.asarray(ARRAYS[key])).double()
    ours = torch.as_tensor(ours).detach().double()
    assert ours.shape == expected.shape, key
    assert float((ours - expected).norm() / expected.norm()) < tolerance, key


def labels(name):
    draws = torch.from_numpy(np.asarray(fill.uniform(name, (2, 6, 7, 8)))).double()
    return (3 * draws + 3).trunc().clamp(0, 5).long()


def one_hot(x):
    return torch.nn.functional.one_hot(x, 6).movedim(-1, 1).double()


@pytest.mark.parametrize("n", [2, 3])
def test_warps_and_integrals_are_the_original_ones(n):
    size = SIZES[n]
    src = made((2, 2, *size), f"warp{n}.src").requires_grad_()
    flow = (1.5 * made((2, n, *size), f"warp{n}.flow")).requires_grad_()
    moved = warp(src, flow)
    assert_recorded(moved, f"warp{n}.bilinear")
    moved.backward(made(moved.shape, f"warp{n}.cotangent"))
    assert_recorded(src.grad, f"warp{n}.grad.src")
    assert_recorded(flow.grad, f"warp{n}.grad.flow")
    assert_recorded(warp(src, flow, mode="nearest"), f"warp{n}.nearest")
    velocity = (1.5 * made((2, n, *size), f"vecint{n}.flow")).requires_grad_()
    assert_recorded(integrate_velocity(velocity, 3), f"vecint{n}.steps3")
    flow = integrate_velocity(velocity)
    assert_recorded(flow, f"vecint{n}")
    flow.backward(made(flow.shape, f"vecint{n}.cotangent"))
    assert_recorded(velocity.grad, f"vecint{n}.grad")
    field = made((1, n, *(2 * side for side in size)), f"resize{n}")
    assert_recorded(resize_flow(field, 0.5), f"resize{n}.vel_resize2")
    every = (slice(None), slice(None), *[slice(None, None, 3)] * n)
    assert_recorded(resize_flow(field, 2.0)[every], f"resize{n}.vel_resize0.5")


def test_losses_of_images_are_the_original_ones():
    fixed = 0.3 * made((2, 1, 11, 9, 13), "ncc.I") + 0.5
    moved = (0.3 * made((2, 1, 11, 9, 13), "ncc.J") + 0.5).requires_grad_()
    ncc = losses.ncc_loss(moved, fixed)
    assert_recorded(ncc, "ncc3d")
    assert_recorded(torch.autograd.grad(ncc, moved)[0], "ncc3d.grad.J")
    assert_recorded(losses.ncc_loss(moved, fixed, window=5), "ncc3d.win5")
    assert_recorded(torch.nn.functional.mse_loss(moved, fixed), "mse")
    flat = (0.3 * made((2, 1, 14, 17), name) + 0.5 for name in ("ncc2.J", "ncc2.I"))
    assert_recorded(losses.ncc_loss(*flat), "ncc2d")


def test_losses_of_labels_are_the_original_ones():
    target = one_hot(labels("dice.labels"))
    target[1, 4] = 0
    predicted = made((2, 6, 6, 7, 8), "dice.pred").softmax(1).requires_grad_()
    keep = torch.tensor([0, 1, 1, 1, 0, 1], dtype=torch.bool)
    assert_recorded(losses.dice_loss(predicted, target) - 1, "dice")
    loss = losses.dice_loss(predicted[:, keep], target[:, keep])
    assert_recorded(loss - 1, "dice.keep")
    assert_recorded(torch.autograd.grad(loss, predicted)[0], "dice.keep.grad")
    pair = [one_hot(labels(name)[:1]) for name in ("dice.labels", "dice.labels2")]
    for one in pair:
        one[:, 5] = 0
    features = made((1, 6, 6, 7, 8), "cl.feature").requires_grad_()
    loss = losses.contrastive_loss(features, *pair)
    assert_recorded(loss, "contrastive")
    assert_recorded(torch.autograd.grad(loss, features)[0], "contrastive.grad")


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_gradient_loss_is_the_original_one(penalty):
    flow = made((2, 3, 6, 5, 7), "grad.flow").requires_grad_()
    loss = losses.gradient_loss(flow, penalty=penalty)
    assert_recorded(loss, f"grad.{penalty}")
    assert_recorded(2 * loss, f"grad.{penalty}.mult2")
    assert_recorded(torch.autograd.grad(2 * loss, flow)[0], f"grad.{penalty}.mult2.grad")


def test_folds_are_counted_along_the_right_axes():
    flow = (0.6 * made((6, 7, 8, 3), "jac.flow")).movedim(-1, 0)[None]
    assert_recorded(jacobian_determinant(flow)[0], "metric.jacobian_determinant(np.gradient)")
    share = 100 * metrics.folded_share(flow)[0]
    assert_recorded(share, "metric.negative_jacobian_percent_correct")
    # the components as the original passes them to ITK
    swapped = 100 * metrics.folded_share(flow.flip(1))[0]
    assert swapped != share
    folding = torch.zeros(1, 3, 6, 7, 8, dtype=torch.float64)
    folding[0, 0] = -2 * torch.arange(6, dtype=torch.float64).view(6, 1, 1)
    assert_recorded(100 * metrics.folded_share(folding)[0], "metric.folding_field_percent_correct")


def test_scores_of_labels_are_the_original_ones():
    pair = [labels(name)[:1] for name in ("dice.labels", "dice.labels2")]
    assert_recorded(metrics.dice_scores(*pair, 6)[0], "metric.dice")
    boxes = torch.zeros(2, 1, 9, 11, 10, dtype=torch.int64)
    boxes[0, 0, 2:6, 3:9, 2:7] = 1
    boxes[1, 0, 3:8, 2:8, 4:9] = 1
    boxes[1, 0, 0, 0, 0] = 1
    assert_recorded(metrics.hausdorff_distances(*boxes, 2, percentile=100)[0, 0], "metric.hd")
    hd95 = float(metrics.hausdorff_distances(*boxes, 2)[0, 0])
    assert hd95 >= float(ARRAYS["metric.hd95"])
    doubled = metrics.hausdorff_distances(*boxes, 2, spacing=(2.0, 2.0, 2.0))
    assert float(doubled) == pytest.approx(2 * hd95)


def test_labels_are_warped_to_whole_numbers():
    volume = torch.tensor([[[7, 2**24 + 1], [0, 3]]])
    flow = torch.zeros(1, 2, 2, 2)
    flow[:, 1] = 1.2
    assert metrics.warp_labels(volume, flow).tolist() == [[[2**24 + 1, 0], [3, 0]]]
