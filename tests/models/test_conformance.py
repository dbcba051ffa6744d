"""What timm and tools around it rely on without testing it, for the test model of every family."""

import copy
import pickle

import pytest
import timm
import torch
from safetensors.torch import load, save
from timm.layers import DropPath
from timm.models import load_checkpoint
from timm.optim import create_optimizer_v2

from tests.backbones import MULTISCALE, SCANNING, TEST_MODELS, any_size, is_plain, pyramid, stirred
from tests.closeness import assert_same
from vimamba.checkpoints import classifiers


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **kwargs)


def image_for(model, count=2):
    torch.manual_seed(1)
    return torch.randn(count, *model.pretrained_cfg["input_size"])


def residual_branches(model):
    """Parameters of the mixer in every block that drops its path."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "drop_path", None), DropPath):
            yield from ((f"{name}.{leaf}", p) for leaf, p in module.mixer.named_parameters())


@pytest.mark.parametrize("name", TEST_MODELS)
def test_a_dropped_path_leaves_nothing_of_the_branch(name):
    model = stirred(build(name, drop_path_rate=0.5)).train()
    drops = [m for m in model.modules() if isinstance(m, DropPath)]
    assert drops
    for drop in drops:
        drop.drop_prob = 1.0
    model(image_for(model)).square().sum().backward()
    branches = dict(residual_branches(model))
    assert branches
    assert {n for n, p in branches.items() if p.grad is not None and p.grad.any()} == set()
    # evaluation keeps them all
    model.eval().zero_grad()
    model(image_for(model)).square().sum().backward()
    assert {n for n, p in branches.items() if p.grad is None or not p.grad.any()} == set()


@pytest.mark.parametrize("name", TEST_MODELS)
def test_drop_path_rises_evenly_from_the_first_block_to_the_last(name):
    model = build(name, drop_path_rate=0.3)
    rates = [m.drop_path.drop_prob for m in model.modules() if hasattr(m, "drop_path")]
    expected = torch.linspace(0, 0.3, len(rates)).tolist()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", TEST_MODELS)
def test_every_rule_on_weight_decay_names_a_parameter(name):
    model = build(name)
    names = {n for n, _ in model.named_parameters()}
    free = model.no_weight_decay()
    assert free <= names
    for leaf in ("A_log", "D", "dt_bias"):
        assert name not in SCANNING or any(n.endswith(f".{leaf}") for n in free)
        assert all(n in free for n in names if n.endswith(f".{leaf}"))


@pytest.mark.parametrize("name", TEST_MODELS)
def test_layer_decay_follows_the_order_of_computation(name):
    model = build(name)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert len(scale) == len(list(model.parameters()))
    seen = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own:
            module.register_forward_pre_hook(lambda *_, own=own: seen.extend(own))
    model(image_for(model))
    scales = [scale[id(p)] for p in seen]
    assert scales == sorted(scales)
    assert scales[-1] == 1
    assert len(set(scales)) >= len(model.feature_info)


@pytest.mark.parametrize("name", TEST_MODELS)
def test_buffers_made_on_meta_are_filled(name):
    torch.manual_seed(0)
    fresh = timm.create_model(name)
    model = timm.create_model(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else -7)
    torch.manual_seed(0)
    model.init_weights()
    for (key, ours), theirs in zip(model.named_parameters(), fresh.parameters(), strict=True):
        spread = theirs.std(correction=0) * ours.numel() ** -0.5
        # the mean of random numbers is itself random: ten deviations
        torch.testing.assert_close(
            ours.mean(), theirs.mean(), rtol=0, atol=10 * spread.item() + 1e-6, msg=key
        )
    for (key, ours), theirs in zip(model.named_buffers(), fresh.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=key)
    assert model(image_for(model)).isfinite().all()


@pytest.mark.parametrize("name", TEST_MODELS)
def test_a_state_dict_goes_through_files(name, tmp_path):
    model = build(name).eval()
    expected = model(image_for(model))
    # safetensors refuses tensors that share memory
    state = load(save(model.state_dict()))
    assert build(name).load_state_dict(state, strict=True)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "net.pth")
    other = timm.create_model(name, num_classes=3).eval()
    load_checkpoint(other, str(tmp_path / "net.pth"))
    assert_same(other(image_for(model)), expected)


@pytest.mark.parametrize("name", TEST_MODELS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_a_model_of_its_own(name, copied):
    model = build(name).eval()
    image = image_for(model)
    expected = model(image)
    other = copied(model)
    assert_same(other(image), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert torch.equal(model(image), expected)
    assert not torch.allclose(other(image), expected)


@pytest.mark.parametrize("name", TEST_MODELS)
def test_features_follow_indices_and_format(name):
    model = build(name).eval()
    image = image_for(model)
    final, every = model.forward_intermediates(image)
    torch.testing.assert_close(final, model.forward_features(image))
    assert [f.shape[1] for f in every] == [info["num_chs"] for info in model.feature_info]
    last, first = len(every) - 1, 0
    chosen = model.forward_intermediates(image, indices=[first, -1], intermediates_only=True)
    assert torch.equal(chosen[0], every[first])
    assert torch.equal(chosen[1], every[last])
    tail = model.forward_intermediates(image, indices=2, intermediates_only=True, stop_early=True)
    assert all(torch.equal(a, b) for a, b in zip(tail, every[-2:], strict=True))
    other = "NLC" if is_plain(name) else "NHWC"
    for ours, theirs in zip(
        model.forward_intermediates(image, output_fmt=other, intermediates_only=True),
        every,
        strict=True,
    ):
        assert torch.equal(ours.flatten(1, -2), theirs.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 130)], ids=str)
@pytest.mark.parametrize("name", [name for name in MULTISCALE if is_plain(name)])
def test_the_pyramid_of_a_plain_model_has_four_strides(name, size):
    model = timm.create_model(name, features_only=True, **pyramid(name)).eval()
    height, width = model.model.patch_embed.dynamic_feat_size(size)
    maps = model(torch.randn(1, 3, *size))
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    sides = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width)]
    sides.append((height // 2, width // 2))
    for feature, info, side in zip(maps, model.feature_info, sides, strict=True):
        assert tuple(feature.shape) == (1, info["num_chs"], *side)
        assert feature.is_contiguous()


@pytest.mark.parametrize("blocks", [(0, 1, 2), (0, 1, 2, 4), (0, 1, 1, 2), (3, 2, 1, 0)])
def test_a_pyramid_needs_four_blocks_in_order(blocks):
    with pytest.raises(ValueError, match="four rising numbers of the 4 blocks"):
        timm.create_model("test_vim", features_only=True, pyramid=blocks)


@pytest.mark.parametrize("name", TEST_MODELS)
def test_the_classifier_can_be_taken_off_and_put_on(name):
    model = build(name).eval()
    image = image_for(model)
    logits, tokens = model(image), model.forward_features(image)
    pooled = model.forward_head(tokens, pre_logits=True)
    classifier = model.get_classifier()
    torch.testing.assert_close(classifier(pooled), logits)
    model.reset_classifier(0)
    torch.testing.assert_close(model(image), pooled)
    assert model.num_classes == 0
    model.reset_classifier(7)
    assert model(image).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(0, "")
    assert torch.equal(model(image), tokens)


@pytest.mark.parametrize("name", TEST_MODELS)
def test_frozen_all_but_the_head_trains_the_head_alone(name):
    model = build(name).train()
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    model(image_for(model)).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        f"{name}.{leaf}"
        for name in classifiers(model.pretrained_cfg)
        for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize("name", TEST_MODELS)
def test_one_parameter_without_gradient_does_not_stop_the_others(name):
    model = build(name, **any_size(name)).train()
    names = [n for n, _ in model.named_parameters()]
    for frozen in names:
        if frozen.endswith(("A_log", "D", "dt_bias")) or ".conv." in frozen:
            model.get_parameter(frozen).requires_grad_(False)
    model(image_for(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("name", TEST_MODELS)
def test_functional_call_uses_the_weights_it_is_given(name):
    model, other = build(name).eval(), timm.create_model(name, num_classes=3).eval()
    image = image_for(model)
    found = torch.func.functional_call(model, dict(other.named_parameters()), (image,))
    assert_same(found, other(image))
