"""A model from torch.jit.trace or torch.fx is correct at other sizes, or raises."""

import warnings

import pytest
import timm
import torch

import vimamba

FEATURES = {"features_only": True}
MODELS = {
    "vmamba": ("test_vmamba", {}),
    "vmamba_features": ("test_vmamba", FEATURES),
    "vmamba_m2": ("test_vmamba_m2", {}),
    "vmamba_v0": ("vmamba_tiny_v0", {"depths": (1, 1), "dims": (8, 16)}),
    "medmamba": ("test_medmamba", {}),
    "adventurer": ("test_adventurer", {"dynamic_img_size": True, "depth": 3}),
    "arm": ("test_arm", {"dynamic_img_size": True, "depth": 2}),
    "mamband": ("test_mamband", {"dynamic_img_size": True, "depth": 3, "merge_after": 0}),
    "efficientvmamba": ("test_efficientvmamba", {}),
    "groupmamba": ("test_groupmamba", {}),
    "localvmamba_dense": ("test_localvmamba", {"stage_norm": True, **FEATURES}),
    "localvim": ("test_localvim", {"dynamic_img_size": True}),
    "mambar": ("test_mambar", {"dynamic_img_size": True, "depth": 2}),
    "plainmamba": ("test_plainmamba", {"depth": 2}),
    "plainmamba_features": (
        "test_plainmamba",
        {"stage_norm": True, "scan_order": ["raster + windows(size=3)", "serpentine"], **FEATURES},
    ),
    "rsmamba": ("test_rsmamba", {"dynamic_img_size": True, "depth": 2}),
    "videomamba": ("test_videomamba", {"dynamic_img_size": True, "depth": 2}),
    "vimf": ("test_vimf", {"depth": 2, "fourier_blocks": 1}),
    "mambavision": ("test_mambavision", {}),
    "mobilemamba": ("test_mobilemamba", {}),
    "vssd": ("test_vssd", {}),
    "mlla": ("test_mlla", {}),
    "spatialmamba": ("test_spatialmamba", {}),
    "msvmamba": ("test_msvmamba", {}),
    "msvmambav3": ("test_msvmambav3", {}),
    "damamba": ("test_damamba", {}),
    "a2mamba": ("test_a2mamba", {}),
    "mambatree": ("test_mambatree", {}),
    "tinyvim": ("test_tinyvim", {}),
    "vim": ("test_vim", {"dynamic_img_size": True}),
    "vim_avg": (
        "test_vim",
        {
            "dynamic_img_size": True,
            "global_pool": "avg",
            "depth": 2,
            "scan_order": ["raster + windows(size=3)", "bidirectional"],
        },
    ),
    "vim_rotary": (
        "test_vim",
        {"dynamic_img_size": True, "class_token": "first", "rotary": True, "depth": 2},
    ),
    "vim_pyramid": (
        "test_vim",
        {"dynamic_img_size": True, "class_token": "none", "pyramid": (0, 1, 2, 3), **FEATURES},
    ),
}
NETWORKS = {
    "vm_unet": {"depths": (1, 1), "decoder_depths": (1, 1), "dims": (16, 32)},
    "swin_umamba": {"depths": (1, 1), "dims": (8, 16, 32)},
    "swin_umamba_d": {"depths": (1, 1), "dims": (16, 32)},
    "umamba_bot_2d": {"features_per_stage": (8, 16)},
    **{head: {} for head in vimamba.list_heads()},
}
# not the example's, not square, not multiples of a stride
SIZES = [(2, 3, 64, 96), (1, 3, 75, 101), (3, 3, 48, 32)]
EXAMPLE = (1, 3, 64, 64)


# every kind of model by default; timm's own tests also script the others
QUICK = ("vmamba", "vim", "medmamba", "mambavision", "mambar", "rsmamba")


def quick(kinds):
    """Kinds of models to parametrize with; those of other families are slow."""
    return [k if k.startswith(QUICK) else pytest.param(k, marks=pytest.mark.slow) for k in kinds]


def trace(model, example=EXAMPLE):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, torch.randn(example), check_trace=False)


@torch.no_grad()
def assert_same(made, model, sizes=SIZES):
    for size in sizes:
        image = torch.randn(size)
        torch.testing.assert_close(made(image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", quick(MODELS))
def test_a_traced_model_is_right_at_other_sizes(kind):
    name, arguments = MODELS[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    assert_same(trace(model), model)


@pytest.mark.parametrize("kind", ["vmamba", "vim", "mlla", "rsmamba"])
def test_a_symbolic_trace_is_right_at_other_sizes(kind):
    name, arguments = MODELS[kind]
    model = timm.create_model(name, **arguments).eval()
    assert_same(torch.fx.symbolic_trace(model), model)


@pytest.mark.parametrize(
    "kind", [kind for kind, (_, kw) in MODELS.items() if kw is FEATURES or "pyramid" in kind]
)
def test_an_extractor_of_feature_maps_scripts(kind):
    name, arguments = MODELS[kind]
    model = timm.create_model(name, **arguments).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    assert_same(scripted, model)


@pytest.mark.parametrize(
    "kind", quick(kind for kind, (_, kw) in MODELS.items() if "features_only" not in kw)
)
def test_every_family_scripts_with_chosen_features(kind):
    name, arguments = MODELS[kind]
    model = timm.create_model(name, out_indices=(0, 1), **arguments, **FEATURES).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    assert_same(scripted, model)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_traced_segmentation_network_is_right_at_other_sizes(name):
    torch.manual_seed(0)
    model, head = (name, None) if name in vimamba.list_segmenters() else ("test_vmamba", name)
    network = vimamba.create_segmenter(model, head, num_classes=2, **NETWORKS[name]).eval()
    assert_same(trace(network), network)


def test_a_trace_of_the_smallest_image_is_right_for_larger_ones_and_the_reverse():
    """A U-Mamba pads images smaller than two cells, in a separate branch."""
    torch.manual_seed(0)
    network = vimamba.create_segmenter("umamba_bot_2d", num_classes=2, features_per_stage=(8, 16))
    small, large = (1, 3, 1, 2), (2, 3, 9, 16)
    for example, other in ((small, large), (large, small)):
        assert_same(trace(network.eval(), example), network, [other])


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        # the same number of tokens; the same grid; rows that could be repeated
        ("vim", [(1, 3, 64, 144), (1, 3, 100, 100), (1, 3, 16, 96)]),
        ("umamba", [(1, 3, 8, 32), (1, 3, 4, 64)]),
    ],
)
def test_a_trace_of_a_model_of_one_size_refuses_others(model, sizes):
    if model == "vim":
        made, example = timm.create_model("test_vim").eval(), (1, 3, 96, 96)
    else:
        made, example = (
            vimamba.create_segmenter(
                "umamba_enc_2d", num_classes=2, features_per_stage=(8, 16, 32), patch_size=(16, 16)
            ).eval(),
            (1, 3, 16, 16),
        )
    traced = trace(made, example)
    assert_same(traced, made, [example])
    for size in sizes:
        with pytest.raises(torch.jit.Error, match=r"images are \[\d+, \d+\] pixels, expected"):
            traced(torch.randn(size))


def test_a_program_exported_for_one_size_refuses_others():
    model = timm.create_model("test_vmamba", depths=(1,), dims=(16,)).eval()
    program = torch.export.export(model, (torch.randn(EXAMPLE),)).module()
    assert_same(program, model, [EXAMPLE])
    with pytest.raises(AssertionError, match="64"):
        program(torch.randn(1, 3, 64, 96))


def test_an_export_by_torch_itself_says_where_to_go():
    model = timm.create_model("test_vmamba", depths=(1,), dims=(16,)).eval()
    with pytest.raises(Exception, match=r"vimamba.exporting.export_model\(model"):
        torch.onnx.export(model, (torch.randn(EXAMPLE),), verbose=False)
