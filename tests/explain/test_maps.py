"""Class activation maps and receptive fields of every backbone, and of segmentation networks."""

import re

import numpy as np
import pytest
import timm
import torch

import vimamba
from tests.backbones import TEST_MODELS
from tests.explain.test_scans import build
from vimamba import explain
from vimamba.explain.cam import find_maps

pytest.importorskip("pytorch_grad_cam")


@pytest.mark.parametrize("name", TEST_MODELS)
def test_every_backbone_has_a_map_and_a_field(name):
    model, image = build(name)
    made = explain.cam(model, image, target=1)
    assert made.shape == image.shape[1:]
    assert made.std() > 0
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    field = explain.erf(model, image[None], probes=1)
    assert field.map.sum() == pytest.approx(1, rel=1e-4)
    assert 0 < field.radii[0.5] <= field.radii[0.9]


def test_patches_keep_their_places_around_the_prefix_tokens():
    model, image = build("test_mambar")
    _, to_map = find_maps(model, image[None])
    tokens = torch.arange(19.0).reshape(1, 19, 1)
    places = model.places(16)
    others = [token for token in range(19) if token not in places]
    assert to_map(tokens).flatten().tolist() == others


@pytest.mark.parametrize("backbone", ["test_vmamba", "test_vim"])
def test_segmentation_explains_a_class_a_mask_or_a_pixel(backbone):
    torch.manual_seed(0)
    net = vimamba.create_segmenter(backbone, num_classes=3).eval()
    image = torch.randn(3, 70, 90)
    mask = torch.zeros(70, 90, dtype=torch.bool)
    mask[3, 4] = True
    at_pixel = explain.cam(net, image, target=1, where=(3, 4))
    assert at_pixel.shape == (70, 90)
    at_mask = explain.cam(net, image, target=1, where=mask)
    np.testing.assert_allclose(at_mask, at_pixel, rtol=1e-5, atol=1e-6)  # float32 in [0, 1]
    assert not np.allclose(explain.cam(net, image), at_pixel)


def test_a_network_that_calls_the_parts_of_a_stage_has_a_map():
    torch.manual_seed(0)
    sizes = {"depths": (1, 1), "decoder_depths": (1, 1), "dims": (8, 16)}
    net = vimamba.create_segmenter("vm_unet", num_classes=3, **sizes).eval()
    image = torch.randn(3, 36, 44)
    made = explain.cam(net, image, target=1, where=(3, 4))
    assert made.shape == (36, 44)
    assert made.std() > 0
    with pytest.raises(explain.ExplainError, match=r"layers='encoder\.stages\.1' has no output"):
        explain.cam(net, image, layers=["encoder.stages.1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 4}, "target=4 must be a class from 0 to 3"),
        ({"method": "gladcam"}, "method='gladcam' is unknown"),
        ({"where": (0, 0)}, "where is for segmentation"),
        ({"layers": ["stages.9"]}, "layers='stages.9' is not a module"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(explain.ExplainError, match=message):
        explain.cam(*build("test_vim"), **options)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((3, 96, 96)), {}, "image is ndarray, and must be a tensor"),
        (torch.full((3, 96, 96), torch.nan), {}, "image must have finite values only"),
        (torch.zeros(3, 96, 96), {"target": "dog"}, "target='dog' must be a class from 0 to 3"),
        (
            torch.zeros(3, 96, 96),
            {"where": torch.ones(9, 9)},
            "where of shape (9, 9) must be a mask",
        ),
    ],
)
def test_what_is_no_image_class_or_mask_is_refused(image, options, message):
    model, _ = build("test_vim")
    with pytest.raises(explain.ExplainError, match=re.escape(message)):
        explain.cam(model, image, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "insert"}, "kind='insert' is unknown; choose from ['deletion', 'insertion']"),
        ({"target": 4}, "target=4 must be a class from 0 to 3"),
        ({"steps": 0}, "steps=0 no more than the pixels"),
    ],
)
def test_a_curve_of_nothing_is_refused(options, message):
    model, image = build("test_vim")
    with pytest.raises(explain.ExplainError, match=re.escape(message)):
        explain.deletion_curve(model, image, np.ones((6, 6), np.float32), **options)


def test_the_curve_of_a_segmentation_network_is_refused():
    net = vimamba.create_segmenter("test_vim", num_classes=3).eval()
    with pytest.raises(explain.ExplainError, match=r"model=\w+ must be a classifier"):
        explain.deletion_curve(net, torch.zeros(3, 96, 96), np.ones((6, 6), np.float32))


@pytest.mark.parametrize("function", ["attention", "cam", "delta", "paths", "rollout"])
def test_a_model_in_training_mode_is_refused(function):
    model, image = build("test_vim")
    with pytest.raises(explain.ExplainError, match=r"training mode; call model\.eval\(\)"):
        getattr(explain, function)(model.train(), image)


def test_a_model_of_others_needs_its_layers_named():
    model = timm.create_model("test_resnet", num_classes=3).eval()
    image = torch.randn(3, 64, 64)
    with pytest.raises(explain.ExplainError, match="name layers"):
        explain.cam(model, image)
    assert explain.cam(model, image, layers=["layer3"]).shape == (64, 64)
