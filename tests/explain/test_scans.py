"""Hidden attention, step sizes and paths, against the definition and on every backbone."""

import numpy as np
import pytest
import timm
import torch

from tests.backbones import TEST_MODELS
from vimamba import explain
from vimamba.explain.attention import attention_row
from vimamba.explain.scans import observe_scans
from vimamba.scan_orders import scan_paths

# MambaTree's scan follows trees, the others have no scan
WITHOUT_SCANS = ("test_mambatree", "test_mlla", "test_vssd")


def build(name, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **kwargs).eval()
    return model, torch.randn(model.pretrained_cfg["input_size"])


@pytest.fixture(scope="module")
def vim():
    """A scan of a 3 x 3 grid with a class token in the middle, in float64."""
    model, _ = build("test_vim", img_size=48, depth=2)
    image = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    return model.double(), image


def explicit_matrices(scan, module):
    """(K, tokens, tokens, D) by the formula: C_t exp(A (delta_s+1 + ... + delta_t)) delta_s B_s."""
    A = -module.A_log.exp()
    _, count, length, channels = scan.shape
    matrices = torch.zeros(count, length, length, channels, dtype=A.dtype)
    for k in range(count):
        order = scan.paths[k].tolist()
        for t, row in enumerate(order):
            decay = torch.zeros_like(A[k])
            for column in reversed(order[: t + 1]):
                write = scan.steps[0, k, column][:, None] * scan.B[0, k, column]
                matrices[k, row, column] = (scan.C[0, k, row] * decay.exp() * write).sum(-1)
                decay = decay + scan.steps[0, k, column][:, None] * A[k]
    return matrices


def test_rows_are_those_of_the_explicit_matrix(vim):
    model, image = vim
    scan = observe_scans(model, image)[-1]
    with torch.no_grad():
        matrices = explicit_matrices(scan, model.get_submodule(scan.layer))
    # the class token is token 4 of 10, and cell 9
    cells = [*range(4), 9, *range(4, 9)]
    for token, cell in enumerate(cells):
        by_cell = torch.empty_like(matrices[:, token])
        by_cell[:, cells] = matrices[:, token]
        for signed in (True, False):
            expected = (by_cell if signed else by_cell.abs()).mean(-1)
            torch.testing.assert_close(attention_row(scan, cell, signed=signed), expected)
            total = by_cell.sum(0, keepdim=True)
            expected = (total if signed else total.abs()).mean(-1)
            row = attention_row(scan, cell, signed=signed, merge=True)
            torch.testing.assert_close(row, expected)


def test_the_operator_is_the_layer_without_its_skip_and_gate(vim):
    model, image = vim
    scan = observe_scans(model, image)[-1]
    given = {}
    module = model.get_submodule(scan.layer)
    hook = module.register_forward_pre_hook(lambda _, args: given.update(args=args))
    with torch.no_grad():
        model(image)
    hook.remove()
    u, *fixed = (x.detach() for x in given["args"][:5])
    u.requires_grad_()
    y = module(u, *fixed, None, False, False)
    torch.testing.assert_close(y, scan.apply(u))
    back = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, u, back)[0], scan.adjoint(back))


def test_one_state_has_its_majorant_as_absolute_value():
    model, image = build("test_vmamba", d_state=1)
    scan = observe_scans(model, image[None])[-1]
    signed = attention_row(scan, 4, signed=False)
    torch.testing.assert_close(attention_row(scan.majorant(), 4, signed=True), signed)


@pytest.mark.parametrize("name", [n for n in TEST_MODELS if n not in WITHOUT_SCANS])
def test_every_scan_is_explained(name):
    model, image = build(name)
    maps = explain.attention(model, image)
    signed = explain.attention(model, image, signed=True, per_path=True)
    assert maps.shape[1:] == signed.shape[2:]
    assert (maps >= 0).all()
    assert maps.any()
    assert np.isfinite(signed).all()
    steps, walks = explain.delta(model, image), explain.paths(model, image)
    assert steps.keys() == walks.keys()
    for layer, values in steps.items():
        assert np.nanmin(values) > 0
        # a path visits every cell, so each has a step size
        assert np.isfinite(values).any(0).all()
        height, width = values.shape[1:]
        places = walks[layer].reshape(-1, 2)
        cells = places[np.isfinite(places).all(1)] / image.shape[1:] * (height, width) - 0.5
        assert len(np.unique(cells.round(), axis=0)) == height * width


def test_paths_are_those_of_the_order():
    model, image = build("test_vmamba", scan_order="hilbert")
    walk = explain.paths(model, image)["stages.0.blocks.0.mixer.scan"]
    table = scan_paths("hilbert", 24, 24).numpy()
    np.testing.assert_allclose(walk[..., 0], (table // 24 + 0.5) * 4)
    np.testing.assert_allclose(walk[..., 1], (table % 24 + 0.5) * 4)


def test_roll_out_sums_to_one():
    model, image = build("test_localvim")
    np.testing.assert_allclose(explain.rollout(model, image).sum(), 1.0, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("test_mlla", lambda m, x: explain.attention(m, x), "has no selective scan"),
        ("test_vssd", lambda m, x: explain.delta(m, x), "has no selective scan"),
        ("test_vmamba", lambda m, x: explain.rollout(m, x), "do not share one"),
        ("test_vmamba", lambda m, x: explain.attention(m, x, layer="head"), "layer='head' is no"),
        ("test_vim", lambda m, x: explain.attention(m, x, points=[(0, 96)]), "outside the image"),
        ("test_vim", lambda m, x: explain.paths(m, x[0]), "must be one image"),
    ],
)
def test_what_cannot_be_explained_is_said(name, call, message):
    with pytest.raises(explain.ExplainError, match=message):
        call(*build(name))
