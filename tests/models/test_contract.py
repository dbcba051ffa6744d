"""One contract for every backbone; a new family is covered as soon as its test model registers.

Base classes are tested on one model of each kind, the families' own parts on all test models.
timm's own tests run on the same models in `test_timm_suite.py`.
"""

import copy
import inspect
import pickle
from itertools import combinations

import pytest
import timm
import torch
from safetensors.torch import load, save
from timm.layers import DropPath
from timm.models import group_parameters, load_checkpoint, save_for_hf
from timm.optim import create_optimizer_v2

from tests.backbones import (
    KINDS,
    TEST_MODELS,
    any_size,
    has_argument,
    is_plain,
    mixers,
    outline,
    pyramid,
    stirred,
    takes_scan_order,
)
from tests.closeness import assert_same
from vimamba.layers import split_tokens

PYRAMIDS = [name for name in TEST_MODELS if is_plain(name) and has_argument(name, "pyramid")]
SCANNED = [name for name in TEST_MODELS if takes_scan_order(name)]
OF_THE_SCAN = ("A_log", "D", "dt_bias")
SAVING = pytest.mark.skipif(
    "data_config" not in inspect.signature(save_for_hf).parameters, reason="needs timm >= 1.0.31"
)


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **kwargs)


def image_for(model, count=2):
    torch.manual_seed(1)
    return torch.randn(count, *model.pretrained_cfg["input_size"])


def test_every_family_has_a_test_model():
    families = {timm.model_entrypoint(n).__module__ for n in timm.list_models()}
    families = {f for f in families if f.startswith("vimamba.")}
    assert families == {timm.model_entrypoint(n).__module__ for n in TEST_MODELS}


# of one path and of four; tests/layers runs all orders through the mixers
@pytest.mark.parametrize("scan_order", ["raster", "cross"])
@pytest.mark.parametrize("name", SCANNED)
def test_every_model_takes_an_order_of_another_number_of_paths(name, scan_order):
    model = build(name, scan_order=scan_order)
    logits = model(image_for(model))
    logits.square().sum().backward()
    assert logits.shape == (2, 3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", SCANNED)
def test_the_scan_order_changes_the_result_and_a_list_gives_blocks_their_own(name):
    # backward, so that leading class tokens see the others
    orders = ["raster(reverse=True)", "columns(reverse=True)"]
    state = stirred(build(name, scan_order=orders[0])).state_dict()
    outputs = []
    for order in (*orders, orders):
        model = build(name, scan_order=order).eval()
        model.load_state_dict(state)
        outputs.append(model.double()(image_for(model).double()))
    for one, other in combinations(outputs, 2):
        # rounding errors are 1e-15
        assert (one - other).norm() > 1e-6 * one.norm()


@pytest.mark.parametrize("name", SCANNED)
def test_a_list_of_orders_that_cannot_be_is_refused_in_a_line(name):
    for orders, message in (
        ([], r"scan_order=\[\] must be the name of an order or a list of names"),
        (["zigzagg", "raster"], "zigzagg"),
        (["frames", "raster"], r"frames is for grids of 3 axes .*, not 2"),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            timm.create_model(name, device="meta", scan_order=orders)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in TEST_MODELS if name not in SCANNED])
def test_a_model_without_paths_refuses_orders_in_a_line(name):
    with pytest.raises(TypeError, match=r"has no scan and so no scan order: .* 'scan_order'"):
        timm.create_model(name, device="meta", scan_order=["raster", "columns"])


@SAVING
@pytest.mark.parametrize("name", KINDS)
def test_blocks_take_the_orders_of_a_list_in_turn_and_a_folder_keeps_it(name, tmp_path):
    orders = ["raster", "raster + columns(reverse=True)", "local(window=5)"]
    model = build(name, scan_order=orders).eval()
    counts = [m.num_paths for m in mixers(model)]
    assert counts == [(1, 2, 2)[block % 3] for block in range(len(counts))]
    image = image_for(model)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert_same(model(image), again(image))
    twin = build(name, scan_order=[*orders[:2], "local(window=3)"])
    twin.load_state_dict(model.state_dict())
    assert not torch.equal(model(image), twin.eval()(image))


@pytest.mark.parametrize("name", KINDS)
def test_an_unknown_scan_order_is_refused(name):
    with pytest.raises(ValueError, match="zigzagg"):
        timm.create_model(name, scan_order="zigzagg")


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("test_vmamba", "depth", "VMamba got an unexpected keyword argument 'depth'; .* depths"),
        (
            "test_vim",
            "strides",
            "VisionMamba got an unexpected .* close names are stride",
        ),
        ("test_vmamba", "img_size", "VMamba takes images of any size: unexpected .* 'img_size'"),
        ("test_vimf", "dynamic_img_size", "VimF takes images of any size: unexpected"),
        # an argument of the base class that this family does not support
        ("test_plainmamba", "patch_size", "PlainMamba got an unexpected .* 'patch_size'"),
        ("test_damamba", "stage_norm", "DAMamba got an unexpected .* 'stage_norm'"),
    ],
)
def test_an_unknown_argument_is_refused_by_the_models_name(name, argument, message):
    with pytest.raises(TypeError, match=message):
        timm.create_model(name, **{argument: 3})


@pytest.mark.parametrize("name", KINDS)
def test_paths_are_no_order_of_a_model(name):
    with pytest.raises(ValueError, match=r"a tensor of \(2, 36\), must be the name"):
        timm.create_model(name, scan_order=torch.zeros(2, 36))


@pytest.mark.parametrize("name", TEST_MODELS)
def test_a_family_takes_what_it_declares_for_dense_prediction(name):
    declared = type(outline(name)).dense
    model = timm.create_model(name, device="meta", **declared)
    if declared.get("stage_norm"):
        norms = model.tap_norms if is_plain(name) else model.stage_norms
        assert any(list(norm.parameters()) for norm in norms)
    assert timm.create_model(name, features_only=True, device="meta", **declared)


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 130)], ids=str)
@pytest.mark.parametrize("name", TEST_MODELS)
def test_features_have_exactly_the_described_size(name, size):
    model = timm.create_model(name, features_only=True, **any_size(name)).eval()
    patch = getattr(model.model, "patch_embed", None)
    for feature, info in zip(model(torch.randn(1, 3, *size)), model.feature_info, strict=True):
        stride, fine = info["reduction"], size
        if patch:
            stride, fine = stride // patch.stride[0], patch.dynamic_feat_size(size)
        assert list(feature.shape) == [1, info["num_chs"], *(-(-s // stride) for s in fine)]
        assert feature.is_contiguous()


def as_map(model, output, shape):
    """The output of a module of the model, in the shape of a feature."""
    if output.ndim == 3:
        patches, _ = split_tokens(output, model.places(shape[2] * shape[3]))
        output = patches.unflatten(1, shape[2:])
    return output if getattr(model, "is_nchw", False) else output.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", TEST_MODELS)
def test_features_follow_indices_format_and_module(name):
    model = build(name).eval()
    image = image_for(model)
    outputs = {}
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda _m, _x, out, key=info["module"]: outputs.setdefault(key, out)
        )
    final, every = model.forward_intermediates(image)
    for feature, info in zip(every, model.feature_info, strict=True):
        assert torch.equal(as_map(model, outputs[info["module"]], feature.shape), feature)
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
@pytest.mark.parametrize("name", PYRAMIDS)
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


@pytest.mark.parametrize("in_chans", [1, 13])
@pytest.mark.parametrize("name", TEST_MODELS)
def test_any_number_of_channels(name, in_chans):
    model = timm.create_model(name, in_chans=in_chans)
    size = model.pretrained_cfg["input_size"][1:]
    assert model(torch.randn(2, in_chans, *size)).isfinite().all()
    assert model.in_chans == in_chans


@pytest.mark.parametrize("name", TEST_MODELS)
def test_bf16_follows_float32(name):
    model = build(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = model(image_for(model))
    with torch.no_grad():
        torch.testing.assert_close(ours.float(), model(image_for(model)), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", TEST_MODELS)
def test_a_dropped_path_leaves_nothing_of_the_branch(name):
    model = stirred(build(name, drop_path_rate=0.5)).train()
    drops = [m for m in model.modules() if isinstance(m, DropPath)]
    assert drops
    for drop in drops:
        drop.drop_prob = 1.0
    model(image_for(model, count=8)).square().sum().backward()
    branches = dict(residual_branches(model))
    assert branches
    assert {n for n, p in branches.items() if p.grad is not None and p.grad.any()} == set()
    # evaluation keeps them all
    model.eval().zero_grad()
    model(image_for(model, count=8)).square().sum().backward()
    assert {n for n, p in branches.items() if p.grad is None or not p.grad.any()} == set()


def residual_branches(model):
    """Parameters of the mixer in every block with drop path."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "drop_path", None), DropPath) and hasattr(module, "mixer"):
            yield from ((f"{name}.{leaf}", p) for leaf, p in module.mixer.named_parameters())


@pytest.mark.parametrize("name", TEST_MODELS)
def test_drop_path_rises_evenly_from_the_first_block_to_the_last(name):
    model = build(name, drop_path_rate=0.9).train()
    rates = [m.drop_path.drop_prob for m in model.modules() if hasattr(m, "drop_path")]
    assert rates == pytest.approx(torch.linspace(0, 0.9, len(rates)).tolist())
    image = image_for(model, count=8)
    assert not torch.allclose(model(image), model(image))


@pytest.mark.parametrize("name", TEST_MODELS)
def test_weight_decay_spares_what_the_scan_means(name):
    model = build(name)
    names = {n for n, _ in model.named_parameters()}
    free = model.no_weight_decay()
    assert free <= names
    assert {n for n in names if n.endswith(tuple(f".{leaf}" for leaf in OF_THE_SCAN))} <= free
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1)
    group = next(g for g in optimizer.param_groups if g["weight_decay"] == 0)
    spared = {id(p) for p in group["params"]}
    spared = {n for n, p in model.named_parameters() if id(p) in spared}
    assert free <= spared
    assert {n for n in names if n.endswith("proj.weight")} & spared == set()


@pytest.mark.parametrize("name", TEST_MODELS)
def test_layer_groups_run_from_the_stem_to_the_head(name):
    model = build(name)
    groups = group_parameters(model, model.group_matcher())
    grouped = {name for group in groups.values() for name in group}
    assert grouped == {name for name, _ in model.named_parameters()}
    order = [groups[k][0] for k in sorted(groups)]
    assert order[0].startswith(("stem", "cls_token", "pos_embed", "patch_embed"))
    assert any(n.startswith("head") for n in groups[max(groups)])
    blocks = [n for n in order if "blocks" in n]
    assert blocks == sorted(blocks)


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
    # shared parameters belong to the block that uses them first
    scales = [scale[i] for i in dict.fromkeys(id(p) for p in seen)]
    assert scales == sorted(scales)
    assert scales[-1] == 1
    assert len(set(scales)) >= len(model.feature_info)


@pytest.mark.parametrize("name", TEST_MODELS)
def test_a_model_made_on_meta_starts_as_any_other(name):
    fresh = build(name)
    model = timm.create_model(name, num_classes=3, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else -7)
    torch.manual_seed(0)
    model.init_weights()
    for (key, ours), theirs in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert ours.isfinite().all(), key
        # mean and spread of random numbers are random: ten standard deviations of the mean
        count, spread = ours.numel() ** -0.5, theirs.std(correction=0)
        atol = 10 * spread.item() * count + 1e-6
        torch.testing.assert_close(ours.mean(), theirs.mean(), rtol=0, atol=atol, msg=key)
        own = ours.std(correction=0)
        atol = (0.4 + 3 * count) * max(own, spread).item() + 2e-3
        torch.testing.assert_close(own, spread, rtol=0, atol=atol, msg=key)
    for (key, ours), theirs in zip(model.named_buffers(), fresh.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=key)
    assert model(image_for(model)).isfinite().all()


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


@pytest.mark.parametrize("name", KINDS)
def test_frozen_all_but_the_head_trains_the_head_alone(name):
    model = build(name).train()
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    model(image_for(model)).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        f"{model.pretrained_cfg['classifier']}.{leaf}" for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize("name", KINDS)
def test_one_parameter_without_gradient_does_not_stop_the_others(name):
    model = build(name, **any_size(name)).train()
    names = [n for n, _ in model.named_parameters()]
    for frozen in names:
        if frozen.endswith(OF_THE_SCAN) or ".conv." in frozen:
            model.get_parameter(frozen).requires_grad_(False)
    model(image_for(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("name", KINDS)
def test_a_state_dict_goes_through_files(name, tmp_path):
    model = build(name).eval()
    expected = model(image_for(model))
    # safetensors rejects tensors that share memory
    state = load(save(model.state_dict()))
    assert build(name).load_state_dict(state, strict=True)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "net.pth")
    other = timm.create_model(name, num_classes=3).eval()
    load_checkpoint(other, str(tmp_path / "net.pth"))
    assert_same(other(image_for(model)), expected)


@SAVING
@pytest.mark.parametrize("name", KINDS)
def test_a_saved_folder_makes_the_same_model(name, tmp_path):
    model = build(name, scan_order="spiral").eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert_same(model(image_for(model)), again(image_for(model)))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_an_independent_model(name, copied):
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


@pytest.mark.parametrize("name", KINDS)
def test_functional_call_uses_the_weights_it_is_given(name):
    model, other = build(name).eval(), timm.create_model(name, num_classes=3).eval()
    image = image_for(model)
    found = torch.func.functional_call(model, dict(other.named_parameters()), (image,))
    assert_same(found, other(image))
