"""The contract of every segmentation network, whole or a head on a backbone."""

import re

import pytest
import torch
from timm.optim import create_optimizer_v2

import vimamba
from tests.versions import outside
from vimamba.networks import UMamba

# arguments with which gradients reach all parameters at initialization
BACKBONES = {"test_vmamba": {}, "test_vim": {}, "test_resnet": {"zero_init_last": False}}
# and which make networks small enough for tests
NETWORKS = {
    "vm_unet": {"depths": (1, 1, 1), "decoder_depths": (1, 1, 1), "dims": (16, 32, 64)},
    "swin_umamba": {"depths": (1, 1, 1), "dims": (8, 16, 32, 64)},
    "umamba_bot_2d": {"features_per_stage": (8, 16, 16)},
    "umamba_enc_2d": {"features_per_stage": (8, 16, 16)},
    "swin_umamba_d": {"depths": (1, 1, 1), "dims": (16, 32, 64)},
    "rsm_ss_tiny": {"depths": (1, 1, 1), "dims": (16, 24, 32), "d_state": 4},
}
# networks for volumes and hyperspectral cubes have separate tests
VOLUMES = {"umamba_bot_3d", "umamba_enc_3d", "segmamba"}
VOLUMES |= {f"vss_unet_3d_{size}" for size in ("nano", "tiny", "small", "base")}
CUBES = {f"mambahsi_{scene}" for scene in ("pavia", "houston", "hanchuan", "honghu")}
AUXILIARY = {
    "swin_umamba": [2, 4],
    "swin_umamba_d": [4, 8],
    "umamba_bot_2d": [2],
    "umamba_enc_2d": [2],
    **{name: [16] for name in BACKBONES},
}
HEADS_ON_BACKBONES = [(b, h) for b in BACKBONES for h in vimamba.list_heads()]
ALL = [*HEADS_ON_BACKBONES, *((n, None) for n in NETWORKS)]
# every head, every backbone and every network once
FEW = [(b, h) for b, h in ALL if b not in BACKBONES or b == "test_vmamba" or h == "fpn"]
MORE = [pytest.param(*pair, marks=pytest.mark.slow) for pair in ALL if pair not in FEW]
every_segmenter = pytest.mark.parametrize(("model", "head"), [*FEW, *MORE])
every_part = pytest.mark.parametrize(("model", "head"), FEW)
# behavior shared by all heads
every_network = pytest.mark.parametrize(
    ("model", "head"),
    [("test_vmamba", "upernet"), ("test_vim", "fpn"), *((n, None) for n in NETWORKS)],
)


def create(model, head, **kwargs):
    return vimamba.create_segmenter(
        model, head, **{"num_classes": 3, **(NETWORKS | BACKBONES)[model], **kwargs}
    )


def test_every_whole_network_is_tested():
    assert vimamba.list_segmenters() == sorted([*NETWORKS, *VOLUMES, *CUBES])


def orders_of(network):
    return [m.scan_order for m in network.modules() if hasattr(m, "scan_order")]


@pytest.mark.parametrize("model", NETWORKS)
def test_whole_networks_take_scan_orders_in_turn(model):
    network = create(model, None, scan_order=["columns", "cross"]).eval()
    # the encoder's and the decoder's blocks, each from the first of the list
    parts = {
        "vm_unet": [3, 3],
        "swin_umamba": [3],
        "swin_umamba_d": [3, 4],
        "umamba_bot_2d": [1],
        "umamba_enc_2d": [2],
        "rsm_ss_tiny": [3],
    }[model]
    assert orders_of(network) == [
        ("columns", "cross")[block % 2] for part in parts for block in range(part)
    ]
    assert network(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_a_layer_of_u_mamba_over_channels_leaves_them_in_their_order():
    args = {"features_per_stage": (8, 16, 16), "patch_size": (16, 16), "scan_order": "cross"}
    network = UMamba(3, 2, mamba="enc", **args).eval()
    assert orders_of(network) == ["cross", "raster"]
    assert network(torch.randn(1, 3, 16, 16)).isfinite().all()


def test_u_mamba_takes_scan_orders_of_volumes():
    args = {
        "features_per_stage": (4, 8),
        "kernel_sizes": [(3, 3, 3)] * 2,
        "strides": [(1, 1, 1), (2, 2, 2)],
    }
    network = UMamba(1, 2, scan_order="bidirectional + interslice", **args).eval()
    (mixer,) = (m for m in network.modules() if type(m).__name__ == "MambaMixer")
    assert mixer.num_paths == 3
    assert network(torch.randn(1, 1, 6, 8, 10)).shape == (1, 2, 6, 8, 10)
    with pytest.raises(ValueError, match=r"spiral is for grids of 2 axes .*, not 3"):
        UMamba(1, 2, scan_order="spiral", **args)


@every_segmenter
def test_logits_have_the_size_of_the_image_and_gradients_reach_every_parameter(model, head):
    torch.manual_seed(0)
    network = create(model, head)
    logits = network(torch.randn(2, 3, 75, 101))
    logits.square().mean().backward()
    assert logits.shape == (2, 3, 75, 101)
    missed = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missed == []
    assert all(p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 3, 33, 64)).shape == (1, 3, 33, 64)


@every_part
def test_bf16_follows_float32(model, head):
    torch.manual_seed(0)
    network = create(model, head, num_classes=20).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            ours = network(image)
    assert ours.shape == (1, 20, 64, 96)
    error = (ours.float() - expected).norm() / expected.norm()
    assert error < 0.1


@every_network
def test_an_exported_network_gives_the_same_numbers(model, head):
    torch.manual_seed(0)
    network = create(model, head, num_classes=1).eval()
    image = torch.randn(1, 3, 61, 90)
    exported = torch.export.export(network, (image,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(image), network(image), rtol=1e-5, atol=1e-6)


@every_network
def test_saved_weights_load_strictly(model, head, tmp_path):
    network = create(model, head)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    again = create(model, head)
    again.load_pretrained(tmp_path / "weights.pth")
    for (name, ours), theirs in zip(
        network.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    state = network.state_dict()
    state.pop(next(iter(state)))
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(vimamba.checkpoints.CheckpointError, match="1 missing key"):
        again.load_pretrained(tmp_path / "weights.pth")


@pytest.mark.parametrize("model", AUXILIARY)
def test_auxiliary_outputs_follow_the_main_one_and_train_all(model):
    torch.manual_seed(0)
    head = "fpn" if model in BACKBONES else None
    network = create(model, head, aux=True)
    image = torch.randn(2, 3, 58, 64)
    outputs = network.forward_all(image)
    sizes = [tuple(o.shape[1:]) for o in outputs]
    assert sizes == [(3, 58, 64), *((3, -(-58 // s), 64 // s) for s in AUXILIARY[model])]
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    with torch.no_grad():
        outputs = network.eval().forward_all(image)
        assert torch.equal(outputs[0], network(image))
    assert len(create(model, head).forward_all(image)) == 1


@pytest.mark.parametrize(
    "model", [n for n in [*BACKBONES, *NETWORKS] if not n.startswith("umamba")]
)
def test_gradient_checkpointing_changes_only_what_is_kept(model):
    if model == "test_resnet" and outside("timm", "1.0.31", "2"):
        pytest.skip("the feature maps of timm 1.0.20's ResNet are computed without checkpointing")
    torch.manual_seed(0)
    network = create(model, "fpn" if model in BACKBONES else None).eval()
    image = torch.randn(1, 3, 64, 64)

    def gradients():
        kept = []
        network.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            logits = network(image)
        logits.square().mean().backward()
        return len(kept), [p.grad.clone() for p in network.parameters()]

    many, expected = gradients()
    network.set_grad_checkpointing()
    few, ours = gradients()
    assert few < many
    torch.testing.assert_close(ours, expected)


def test_a_network_without_gradient_checkpointing_says_so():
    network = vimamba.create_network("mambahsi_pavia", num_classes=2)
    with pytest.raises(ValueError, match="MambaHSI has no gradient checkpointing"):
        network.set_grad_checkpointing()


@every_network
def test_the_optimizer_spares_scans_and_slows_early_layers(model, head):
    network = create(model, head)
    groups = create_optimizer_v2(
        network, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5
    ).param_groups
    names = {id(p): n for n, p in network.named_parameters()}
    group_of = {names[id(p)]: g for g in groups for p in g["params"]}
    assert group_of.keys() == set(names.values())
    for name, group in group_of.items():
        if name.endswith((".A_log", ".D", ".dt_bias")):
            assert group["weight_decay"] == 0, name
    scales = {n: g["lr_scale"] for n, g in group_of.items()}
    stem = next(n for n in scales if re.search(r"(encoder|model|^)\.?(stem|patch_embed|conv1)", n))
    assert scales[stem] == min(scales.values()) < 0.2
    assert scales[list(names.values())[-1]] == 1


@pytest.mark.parametrize("in_chans", [1, 13])
@pytest.mark.parametrize("model", [*BACKBONES, *NETWORKS])
def test_any_number_of_bands(model, in_chans):
    network = create(model, None, in_chans=in_chans).eval()
    with torch.no_grad():
        assert network(torch.randn(1, in_chans, 40, 72)).isfinite().all()
    assert network.in_chans == in_chans


@pytest.mark.parametrize("model", [*BACKBONES, *NETWORKS])
def test_what_is_known_about_the_images(model):
    network = create(model, None, in_chans=4)
    assert network.default_cfg is network.pretrained_cfg
    assert len(network.pretrained_cfg["mean"]) == len(network.pretrained_cfg["std"]) == 3
    assert network.pretrained_cfg["input_size"][0] == 4
    assert network.pretrained_cfg["num_classes"] == network.num_classes == 3


@pytest.mark.parametrize("model", [*BACKBONES, *NETWORKS])
def test_images_of_few_pixels_are_padded(model):
    network = create(model, None).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 5, 7)).shape == (1, 3, 5, 7)


def test_padding_leaves_whole_cells_alone():
    torch.manual_seed(0)
    network = create("vm_unet", None).eval()
    image = torch.randn(1, 3, 61, 90)
    whole = torch.nn.functional.pad(image, (0, 6, 0, 3))
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(whole)[:, :, :61, :90])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet19"}, r"model='resnet19' is unknown; close names are resnet"),
        (
            {"model": "mambamorph"},
            r"^model='mambamorph' is a network for registration, not for segmentation$",
        ),
        ({"model": "vm_unett"}, r"model='vm_unett' is unknown; close names are vm_unet"),
        (
            {"model": "resnet18", "head": "unett"},
            r"head='unett' is unknown; close names are unet",
        ),
        ({"model": "vm_unet", "head": "fpn"}, "head='fpn' cannot be combined with model='vm_unet'"),
        ({"model": "vm_unet", "aux": True}, "aux=True: vm_unet has no auxiliary outputs"),
        ({"model": "vm_unet", "num_classes": 0}, "num_classes=0 must be at least 1"),
        (
            {"model": "vm_unet", "depths": (2, 2)},
            r"depths=\(2, 2\), decoder_depths.* one entry per stage",
        ),
        ({"model": "vm_unet", "dims": (8, 16, 24, 32)}, r"dims=\(8, 16, 24, 32\) must double"),
        ({"model": "swin_umamba", "dims": (8, 16)}, r"dims=\(8, 16\) must cover the stem"),
        ({"model": "umamba_bot_2d", "pretrained": True}, "no published weights of umamba_bot_2d"),
        (
            {"model": "umamba_bot_2d", "strides": [(1, 1)]},
            r"strides=\[\(1, 1\)\].* must match in stages",
        ),
        ({"model": "umamba_enc_2d", "patch_size": 64}, "patch_size=64 of umamba_enc_2d must be 2"),
        ({"model": "umamba_bot_3d", "patch_size": (8, 8)}, r"patch_size=\(8, 8\) of umamba_bot_3d"),
        (
            {"model": "umamba_bot_3d", "spacing": (1, 0, 1)},
            r"spacing=\(1, 0, 1\) must be a positive",
        ),
        (
            {"model": "umamba_bot_2d", "spacing": (1, 2), "strides": [(1, 1), (2, 2)]},
            r"spacing=\(1, 2\) cannot be combined with strides",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        vimamba.create_segmenter(**{"num_classes": 2, **arguments})


def test_umamba_names_the_positions_of_its_layers():
    with pytest.raises(
        ValueError, match=r"patch_size=\(100, 64\) must be a multiple of \(64, 64\)"
    ):
        UMamba(1, 2, mamba="enc", patch_size=(100, 64))
    with pytest.raises(ValueError, match=r"mamba='top' is unknown; choose from \('bot', 'enc'\)"):
        UMamba(1, 2, mamba="top")


def test_a_scan_over_channels_refuses_other_sizes():
    args = {"features_per_stage": (8, 16, 32), "patch_size": (16, 24)}
    network = create("umamba_enc_2d", None, **args).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 15, 22)).shape == (1, 3, 15, 22)
        with pytest.raises(
            ValueError, match=r"images are \[32, 24\] pixels, expected \[16, 24\]; .*patch_size"
        ):
            network(torch.randn(1, 3, 32, 24))


def test_img_size_makes_the_network_of_that_size():
    network = create("umamba_enc_2d", None, img_size=100, features_per_stage=(8,) * 7)
    assert network.pretrained_cfg["input_size"] == (3, 128, 128)
    vit = vimamba.create_segmenter("test_vit", num_classes=2, img_size=90)
    assert vit.encoder.body.model.patch_embed.img_size == (96, 96)
