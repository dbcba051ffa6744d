"""One contract for every backbone; a new family is covered as soon as its test model registers.

timm's own tests run on the same models in `test_timm_suite.py`; here is what they do not check.
"""

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

import vimamba
from tests.backbones import SCANNING
from tests.backbones import TEST_MODELS as NAMES
from tests.closeness import assert_same
from vimamba.layers import (
    SSD2D,
    MambaMixer,
    SelectiveScan,
    StateSpaceDuality,
    insert_into_paths,
)

VIM_DYNAMIC = {"dynamic_img_size": True}


def mixers(model):
    return [m for m in model.modules() if hasattr(m, "num_paths")]


def any_size(name):
    """Arguments that make a model take any image size."""
    fixed = timm.create_model(name, device="meta").pretrained_cfg["fixed_input_size"]
    return VIM_DYNAMIC if fixed else {}


def test_every_family_has_a_test_model():
    families = {timm.model_entrypoint(n).__module__ for n in timm.list_models()}
    families = {f for f in families if f.startswith("vimamba.")}
    assert families == {timm.model_entrypoint(n).__module__ for n in NAMES}


@pytest.mark.parametrize(
    ("name", "scan_order"),
    [("test_vmamba", order) for order in vimamba.list_scan_orders(dims=2)]
    # orders of one path and of many, and one that leaves out tokens, in the others
    + [
        (n, o)
        for n in SCANNING
        if n != "test_vmamba"
        for o in ("hilbert", "omni", "local(window=3)")
    ],
)
def test_every_scan_order_works_in_every_model(name, scan_order):
    model = timm.create_model(name, num_classes=5, scan_order=scan_order)
    logits = model(torch.randn(2, *model.pretrained_cfg["input_size"]))
    logits.square().sum().backward()
    assert logits.shape == (2, 5)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", SCANNING)
def test_the_scan_order_changes_the_result(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval().double()
    image = torch.randn(1, *model.pretrained_cfg["input_size"], dtype=torch.float64)
    order = {1: "columns", 2: "diagonal", 4: "cross_rot90"}[mixers(model)[0].num_paths]
    other = timm.create_model(name, scan_order=order).eval().double()
    other.load_state_dict(model.state_dict())
    # at the start the skip is most of a scan; rounding makes 1e-15
    assert (model(image) - other(image)).norm() > 1e-8 * model(image).norm()


@pytest.mark.parametrize("name", SCANNING)
def test_blocks_take_the_orders_of_a_list_by_turns_and_a_folder_keeps_it(name, tmp_path):
    orders = ["raster", "raster + columns(reverse=True)", "local(window=5)"]
    model = timm.create_model(name, num_classes=3, scan_order=orders).eval()
    counts = [m.num_paths for m in mixers(model)]
    assert counts == [(1, 2, 2)[block % 3] for block in range(len(counts))]
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert_same(model(image), again(image))
    twin = timm.create_model(name, num_classes=3, scan_order=[*orders[:2], "local(window=3)"])
    twin.load_state_dict(model.state_dict())
    assert not torch.equal(model(image), twin.eval()(image))


@pytest.mark.parametrize("name", SCANNING)
def test_an_unknown_scan_order_is_refused(name):
    with pytest.raises(ValueError, match="zigzagg"):
        timm.create_model(name, scan_order="zigzagg")


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 130)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_features_have_exactly_the_described_size(name, size):
    model = timm.create_model(name, features_only=True, **any_size(name)).eval()
    patch = getattr(model.model, "patch_embed", None)
    for feature, info in zip(model(torch.randn(1, 3, *size)), model.feature_info, strict=True):
        stride = info["reduction"]
        expected = [patch.dynamic_feat_size(size) if patch else [-(-s // stride) for s in size]]
        assert list(feature.shape) == [1, info["num_chs"], *expected[0]]
        assert feature.is_contiguous()


@pytest.mark.parametrize("in_chans", [1, 13])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_channels(name, in_chans):
    model = timm.create_model(name, in_chans=in_chans)
    size = model.pretrained_cfg["input_size"][1:]
    assert model(torch.randn(1, in_chans, *size)).isfinite().all()
    assert model.in_chans == in_chans


@pytest.mark.parametrize("name", NAMES)
def test_drop_path_drops(name):
    torch.manual_seed(0)
    model = timm.create_model(name, drop_path_rate=0.9).train()
    image = torch.randn(8, *model.pretrained_cfg["input_size"])
    assert not torch.allclose(model(image), model(image))
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.9)
    assert rates == sorted(rates)


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_spares_what_the_scan_means(name):
    model = timm.create_model(name)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1)
    spared = next(g for g in optimizer.param_groups if g["weight_decay"] == 0)
    names = {id(p): n for n, p in model.named_parameters()}
    spared = {names[id(p)] for p in spared["params"]}
    assert {n for n in names.values() if n.endswith(("A_log", "D", "dt_bias"))} <= spared
    assert {n for n in names.values() if n.endswith("proj.weight")} & spared == set()


@pytest.mark.parametrize("name", NAMES)
def test_layer_groups_run_from_the_stem_to_the_head(name):
    model = timm.create_model(name)
    groups = group_parameters(model, model.group_matcher())
    grouped = {name for group in groups.values() for name in group}
    assert grouped == {name for name, _ in model.named_parameters()}
    order = [groups[k][0] for k in sorted(groups)]
    assert order[0].startswith(("stem", "cls_token", "pos_embed"))
    assert any(n.startswith("head") for n in groups[max(groups)])
    blocks = [n for n in order if "blocks" in n]
    assert blocks == sorted(blocks)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_made_on_meta_starts_as_any_other(name):
    torch.manual_seed(0)
    model = timm.create_model(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    model.init_weights()
    twin = timm.create_model(name)
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert p.isfinite().all(), key
        # the spread of a few random numbers is itself random
        rtol = 0.4 + 3 * p.numel() ** -0.5
        torch.testing.assert_close(p.std(correction=0), q.std(correction=0), rtol=rtol, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_scan_starts_as_published(name):
    model = timm.create_model(name)
    for scan in model.modules():
        if isinstance(scan, SelectiveScan | StateSpaceDuality):
            assert (scan.D == 1).all()
        if isinstance(scan, StateSpaceDuality):
            assert (scan.A_log == 0).all()
            assert 0 <= scan.dt_bias.min() < scan.dt_bias.max() <= 0.1
        elif isinstance(scan, SelectiveScan):
            states = torch.arange(1.0, scan.A_log.shape[-1] + 1)
            torch.testing.assert_close(scan.A_log.exp(), states.expand_as(scan.A_log))
            steps = torch.nn.functional.softplus(
                scan.dt_bias if "vim" not in name else scan.dt_bias[:1]
            )
            assert steps.min() >= 0.99e-3
            assert steps.max() <= 0.101
            rank = scan.dt_proj[0].in_features
            assert scan.dt_proj[0].weight.abs().max() <= rank**-0.5


def test_only_the_first_path_of_vim_gets_the_step_sizes_of_mamba():
    model = timm.create_model("test_vim")
    assert all((b.mixer.scan.dt_bias[1:] == 0).all() for b in model.blocks)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_folder_makes_the_same_model(name, tmp_path):
    order = {"scan_order": "spiral"} if name in SCANNING else {}
    model = timm.create_model(name, num_classes=3, **order).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    assert_same(model(image), again(image))


def test_a_resized_vim_is_saved_and_read_again(tmp_path):
    model = timm.create_model("test_vim", num_classes=3).eval()
    model.set_input_size((64, 128))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(1, 3, 64, 128)
    assert_same(model(image), again(image))
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=96)
    assert other.pos_embed.shape[1] == 37


@pytest.mark.parametrize("name", NAMES)
def test_bf16_follows_float32(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    image = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = model(image)
    with torch.no_grad():
        torch.testing.assert_close(ours.float(), model(image), rtol=0.1, atol=0.05)


def test_mamba_2_in_vmamba_takes_a_gate_and_a_bias():
    args = {"depths": (1,), "dims": (16,), "gated": True, "conv_bias": True}
    model = timm.create_model("test_vmamba_m2", **args)
    (mixer,) = mixers(model)
    model(torch.randn(2, 3, 32, 48)).square().sum().backward()
    assert mixer.in_proj.out_features == 32
    assert all(p.grad.abs().sum() > 0 for p in mixer.parameters())


def test_vmamba_names_the_mixers():
    with pytest.raises(
        ValueError, match=r"mixer='mamba' is unknown; choose from \['ss2d', 'ssd2d'"
    ):
        timm.create_model("test_vmamba", mixer="mamba")


def test_the_heads_of_mamba_2_must_divide_the_channels():
    with pytest.raises(ValueError, match="heads=2 must divide the 27 inner channels"):
        SSD2D(18, expand=1.5)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("test_vssd", {"heads": (3, 2, 2, 2)}, "heads=3 must divide the 16 inner channels"),
        ("test_mlla", {"heads": (3, 2, 2, 2)}, "heads=3 and 4 must divide the 8 channels"),
        ("test_msvmamba", {"version": 2}, "version=2 is unknown; choose 1 or 3"),
    ],
)
def test_what_a_family_cannot_be_made_of_is_refused(name, arguments, text):
    with pytest.raises(ValueError, match=text):
        timm.create_model(name, **arguments)


def test_msvmamba_walks_one_path_at_both_resolutions():
    torch.manual_seed(0)
    one = timm.create_model("test_msvmamba", scan_order="raster").eval().double()
    two = timm.create_model("test_msvmamba", scan_order="raster + raster").eval().double()
    two.load_state_dict(one.state_dict())
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(one(image), two(image))


def test_vim_takes_any_size_and_the_built_one_unchanged():
    torch.manual_seed(0)
    fixed = timm.create_model("test_vim").eval()
    dynamic = timm.create_model("test_vim", dynamic_img_size=True).eval()
    dynamic.load_state_dict(fixed.state_dict())
    image = torch.randn(1, 3, 96, 96)
    assert_same(fixed(image), dynamic(image))
    resized = torch.randn(1, 3, 80, 160)
    fixed.set_input_size((80, 160))
    torch.testing.assert_close(fixed(resized), dynamic(resized))


def test_vim_refuses_another_size_with_the_way_out():
    with pytest.raises(AssertionError, match="image height must be 96; set_input_size"):
        timm.create_model("test_vim")(torch.randn(1, 3, 64, 96))


def test_vim_refuses_images_below_a_patch():
    with pytest.raises(ValueError, match=r"img_size=\(8, 8\) is smaller than a patch"):
        timm.create_model("test_vim", img_size=8)


@pytest.mark.parametrize(
    ("argument", "value"), [("class_token", "end"), ("global_pool", "max")], ids=str
)
def test_vim_names_the_choices(argument, value):
    with pytest.raises(ValueError, match=f"{argument}='{value}' is unknown; choose from"):
        timm.create_model("test_vim", **{argument: value})


def test_pooling_over_the_patches_leaves_the_class_token_out():
    model = timm.create_model("test_vim", global_pool="avg", num_classes=0)
    tokens = torch.randn(2, 37, 48)
    expected = torch.cat([tokens[:, :18], tokens[:, 19:]], dim=1).mean(1)
    torch.testing.assert_close(model.forward_head(tokens), expected)


@pytest.mark.parametrize("length", [2, 5, 6, 7])
@pytest.mark.parametrize("front", [False, True])
def test_the_class_token_keeps_a_path_and_its_reverse_mirrored(length, front):
    path = torch.arange(length)
    position = 0 if front else length // 2
    forward, backward = insert_into_paths(torch.stack([path, path.flip(0)]), [position], length)
    assert torch.equal(forward, torch.arange(length + 1))
    assert torch.equal(backward, forward.flip(0))


@pytest.mark.parametrize(
    ("path", "position", "expected"),
    [
        # local(window=2) on 3x3: a grid's first token first, and zero tokens at the end
        ([0, 1, 3, 4, 2, -1, -1], 0, [0, 1, 2, 4, 5, 3, -1, -1]),
        ([0, 1, 3, 4, 2, -1, -1], 2, [0, 1, 2, 4, 5, 3, -1, -1]),
        ([2, -1, 0, -1], 0, [3, -1, 1, -1, 0]),
        ([-1, 0, -1, 1, 2, 3, -1], 2, [-1, 0, -1, 1, 2, 3, 4, -1]),
    ],
)
def test_zero_tokens_say_nothing_about_the_way_of_a_path(path, position, expected):
    count = max(path) + 1
    found = insert_into_paths(torch.tensor([path]), [position], count)
    assert found.tolist() == [expected]
    mirrored = insert_into_paths(torch.tensor([path[::-1]]), [position], count)
    assert mirrored.tolist() == [expected[::-1]]


def test_registers_keep_a_path_and_its_reverse_mirrored():
    path = torch.arange(8)
    forward, backward = insert_into_paths(torch.stack([path, path.flip(0)]), [2, 5, 8], 8)
    assert torch.equal(forward, torch.arange(11))
    assert torch.equal(backward, forward.flip(0))


def test_the_class_token_is_visited_once_by_every_path():
    paths = vimamba.scan_paths("omni", 3, 5)
    with_token = insert_into_paths(paths, [7], 15)
    assert torch.equal(with_token.sort(1).values, torch.arange(16).expand(len(paths), -1))
    nothing = torch.tensor([[-1, -1]])
    assert insert_into_paths(nothing, [0], 1).tolist() == [[0, -1, -1]]


@pytest.mark.parametrize("path", [[0, 1, 2, 3, 4], [2, -1, 0, 1, -1]])
def test_the_causal_convolution_follows_the_path(path):
    mixer = MambaMixer(4, num_paths=1, expand=1.0).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    ours = mixer.convolve(x, torch.tensor([path]))[:, 0]
    weight, expected = mixer.conv.weight[:, 0], torch.zeros_like(ours)
    for t, token in enumerate(path):
        if token < 0:
            continue
        total = mixer.conv.bias.expand(2, 4).clone()
        for lag in range(4):
            if t >= lag and path[t - lag] >= 0:
                total = total + weight[:, 3 - lag] * x[:, path[t - lag]]
        expected[:, token] = torch.nn.functional.silu(total)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("height", "width"), [(131, 97), (132, 99), (129, 100)])
def test_the_first_generation_drops_what_is_no_whole_patch(height, width):
    """As the official stem does, one convolution with a stride of its kernel's four pixels."""
    torch.manual_seed(0)
    model = timm.create_model("vmamba_tiny_v0", depths=(1, 1), dims=(8, 16), num_classes=5).eval()
    image = torch.randn(2, 3, height, width)
    whole = image[:, :, : height // 4 * 4, : width // 4 * 4]
    with torch.no_grad():
        assert model.stem(image).shape == (2, height // 4, width // 4, 8)
        torch.testing.assert_close(model(image), model(whole))
        shifted = image.clone()
        shifted[:, :, height // 4 * 4 :] += 1
        shifted[:, :, :, width // 4 * 4 :] += 1
        torch.testing.assert_close(model(shifted), model(whole))
