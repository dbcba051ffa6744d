"""U-Mamba built for a patch, and in three dimensions."""

import pytest
import torch

import vimamba
from tests.parity.official import read_manifest, shapes_only
from vimamba.networks.segmentation.umamba import plan_stages

NAMES = ["umamba_bot_3d", "umamba_enc_3d"]
SMALL = {"patch_size": (8, 16, 16), "spacing": (3, 1, 1), "num_classes": 2, "in_chans": 1}
# a plan without its channels, to keep tests small
NARROW = {"features_per_stage": (4, 8), "num_classes": 2, "in_chans": 1, "img_size": 8}


@pytest.mark.parametrize(
    ("name", "spacing"), [("umamba_bot_2d", None), ("umamba_bot_3d", (2.0, 0.7, 0.7))]
)
def test_the_plan_for_a_patch_is_the_published_one(name, spacing):
    published = read_manifest(name)["config"]
    plan = plan_stages(published["patch_size"], spacing)
    assert plan["kernel_sizes"] == published["conv_kernel_sizes"]
    assert plan["strides"] == published["pool_op_kernel_sizes"]
    assert plan["features_per_stage"] == [
        min(published["UNet_base_num_features"] * 2**stage, published["unet_max_num_features"])
        for stage in range(len(plan["strides"]))
    ]


@pytest.mark.parametrize(
    ("patch", "spacing"),
    [
        ((96, 160, 160), (1, 1, 1)),
        ((20, 320, 256), (10, 0.5, 0.5)),
        ((9, 12), (1, 1)),
        ((8, 3), (1, 1)),
        ((13, 512, 7), (1, 2.5, 4)),
    ],
)
def test_the_plan_is_that_of_nnunet(patch, spacing):
    theirs = pytest.importorskip(
        "nnunetv2.experiment_planning.experiment_planners.network_topology"
    ).get_pool_and_conv_props(spacing, patch, 4, 999999)
    ours = plan_stages(patch, spacing)
    assert ours["strides"] == [list(step) for step in theirs[1]]
    assert ours["kernel_sizes"] == [list(kernel) for kernel in theirs[2]]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_volumes_is_made_for_the_patch(name):
    net = vimamba.create_network(name, **SMALL)
    assert net.cell == (2, 4, 4)
    assert net.pretrained_cfg["input_size"] == (1, 8, 16, 16)
    assert net.pretrained_cfg["architecture"] == name
    uneven = vimamba.create_network(name, **{**SMALL, "patch_size": (8, 15, 17)})
    assert uneven.pretrained_cfg["input_size"] == (1, 8, 16, 20)


@pytest.mark.parametrize("name", NAMES)
def test_volumes_are_padded_cropped_and_trained_on(name):
    torch.manual_seed(0)
    net = vimamba.create_network(name, **NARROW, aux=True, scan_order="bidirectional")
    size = (7, 8, 8) if name.startswith("umamba_enc") else (5, 9, 6)
    outputs = net.forward_all(torch.randn(2, 1, *size))
    assert outputs[0].shape == (2, 2, *size)
    sum(output.square().mean() for output in outputs).backward()
    missed = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert missed == []


def test_padding_leaves_whole_cells_of_a_volume_alone():
    torch.manual_seed(0)
    net = vimamba.create_network("umamba_bot_3d", **NARROW).eval()
    volume = torch.randn(1, 1, 5, 8, 7)
    whole = torch.nn.functional.pad(volume, (0, 1, 0, 0, 0, 1))
    with torch.no_grad():
        torch.testing.assert_close(net(volume), net(whole)[:, :, :5, :8, :7])


def test_an_image_is_no_volume():
    net = vimamba.create_network("umamba_bot_3d", **NARROW)
    with pytest.raises(ValueError, match="must have 5: batch, channels and 3 spatial"):
        net(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("name", NAMES)
def test_an_official_file_of_volumes_fits_the_network_of_its_patch(name, tmp_path):
    config = read_manifest(name)["config"]
    torch.save({"network_weights": shapes_only(name)}, tmp_path / "official.pth")
    sizes = {"strides": config["pool_op_kernel_sizes"], "kernel_sizes": config["conv_kernel_sizes"]}
    sizes["features_per_stage"] = config["effective"]["features_per_stage"]
    # the patch of "enc" was made small for the recording, its stages were not
    plan = {"spacing": (2.0, 0.7, 0.7)} if name == "umamba_bot_3d" else sizes
    net = vimamba.create_network(
        name, num_classes=14, in_chans=1, patch_size=config["patch_size"], **plan
    )
    net.load_pretrained(tmp_path / "official.pth")
    assert not [key for key, value in net.named_parameters() if value.any()]
