"""The contract of every change network, whole or a head on a backbone."""

import pytest
import torch

import vimamba
from vimamba.checkpoints import CheckpointError
from vimamba.exporting import export_folder, export_model
from vimamba.layers import ARRANGEMENTS
from vimamba.networks import DamageLogits, SemanticLogits

SMALL = {"depths": (1, 1, 1), "dims": (16, 24, 32), "decoder_dim": 16}
# arguments that make networks small enough for tests
NETWORKS = {
    **{
        f"mamba_{kind}_{size}": SMALL
        for kind in ("bcd", "scd", "bda")
        for size in ("tiny", "small", "base")
    },
    "rsm_cd_tiny": {"depths": (1, 1, 1), "dims": (16, 24, 32), "d_state": 4},
}
# sizes of one class differ only in numbers
KINDS = [name for name in NETWORKS if name.endswith("tiny")]
# every backbone and every fusion
ON_BACKBONES = [
    ("test_vmamba", {"head": "top_down", "fusion": "change_mamba", "fusion_kwargs": {"dim": 16}}),
    ("test_vim", {"head": "fpn", "fusion": "concatenation"}),
    ("test_resnet", {"head": "fpn", "zero_init_last": False}),
]
every_network = pytest.mark.parametrize(
    ("model", "arguments"),
    [*ON_BACKBONES, *((name, NETWORKS[name]) for name in KINDS)],
    ids=lambda value: value if isinstance(value, str) else "",
)


def create(model, **kwargs):
    return vimamba.create_change_detector(model, **{"num_classes": 3, **kwargs})


def dates(*size, in_chans=3, images=2):
    torch.manual_seed(1)
    return torch.randn(2, images, in_chans, *size).unbind()


def listed(logits):
    return [logits] if isinstance(logits, torch.Tensor) else [*logits]


def test_every_whole_network_is_tested():
    assert vimamba.list_change_detectors() == sorted(NETWORKS)
    assert vimamba.list_networks("change") == sorted([*NETWORKS, "backbone_change_detector"])


@every_network
def test_logits_have_the_size_of_the_images_and_gradients_reach_every_parameter(model, arguments):
    torch.manual_seed(0)
    # drop path may skip a block if there are few images
    network = create(model, **arguments).eval()
    before, after = dates(43, 70)
    logits = network(before, after)
    channels = {"semantic": [2, 3, 3], "damage": [2, 3]}.get(network.kind, [3])
    assert [o.shape for o in listed(logits)] == [(2, c, 43, 70) for c in channels]
    sum(o.square().mean() for o in listed(logits)).backward()
    missed = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missed == []
    assert all(p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad():
        # of few pixels, and in one tensor as in torchgeo
        small = network(*dates(5, 7, images=1))
        stacked = network(torch.stack(dates(5, 7, images=1), dim=1))
    torch.testing.assert_close(listed(stacked), listed(small))
    assert type(stacked) is {"semantic": SemanticLogits, "damage": DamageLogits}.get(
        network.kind, torch.Tensor
    )


@pytest.mark.parametrize("in_chans", [1, 4, 13])
def test_any_number_of_bands(in_chans):
    for model, arguments in (("test_vmamba", {"head": "fpn"}), ("rsm_cd_tiny", {})):
        args = {**NETWORKS.get(model, {}), **arguments}
        network = create(model, in_chans=in_chans, **args).eval()
        with torch.no_grad():
            logits = network(*dates(24, 40, in_chans=in_chans))
        assert logits.isfinite().all()
        assert network.pretrained_cfg["input_size"][0] == in_chans


def test_only_a_difference_is_seen_by_the_difference():
    torch.manual_seed(0)
    network = create("test_vmamba", head="fpn").eval()
    (one, other), (same, _) = dates(32, 32), dates(32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(one, same), network(other, other))
        torch.testing.assert_close(network(one, other), network(other, one))
        assert not torch.allclose(network(one, other), network(one, same))


def test_maps_of_one_date_know_nothing_of_the_other():
    torch.manual_seed(0)
    network = create("mamba_scd_tiny", **SMALL).eval()
    before, after = dates(32, 32)
    with torch.no_grad():
        first, second = network(before, after), network(before, after + 1)
    torch.testing.assert_close(first.before, second.before)
    assert not torch.allclose(first.after, second.after)
    assert not torch.allclose(first.change, second.change)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_any_vmamba_takes_any_arrangement_and_scan_order(arrangement):
    torch.manual_seed(0)
    fusion = {"dim": 16, "arrangements": [arrangement], "scan_order": "hilbert", "d_state": 2}
    network = create(
        "test_vmamba_m2", head="fpn", fusion="change_mamba", fusion_kwargs=fusion, scan_order="omni"
    ).eval()
    before, after = dates(32, 48)
    with torch.no_grad():
        logits = network(before, after)
        assert logits.shape == (2, 3, 32, 48)
        # the order of the dates matters
        assert not torch.allclose(logits, network(after, before))


@pytest.mark.slow
def test_an_exported_file_takes_both_dates_in_one_tensor_of_any_size(tmp_path):
    torch.manual_seed(0)
    network = create("mamba_bda_tiny", **SMALL)
    file, args = tmp_path / "net.pt2", {"target": "torch-export", "image_size": (3, 32, 48)}
    assert export_model(network, file, **args).input == ("batch", 2, 3, "height", "width")


def test_a_folder_is_written_and_compared(tmp_path):
    network = create("test_vmamba", head="fpn")
    report = export_folder(network, tmp_path / "net", image_size=(3, 32, 48))
    assert report.input == ("batch", 2, 3, 32, 48)


def test_a_saved_network_is_loaded_as_what_it_is(tmp_path):
    (model, arguments), *_ = ON_BACKBONES
    folder = vimamba.save_pretrained(create(model, **arguments), tmp_path / "net")
    assert vimamba.load_change_detector(folder).fusion.channels == [16] * 4
    with pytest.raises(ValueError, match="not a segmentation network"):
        vimamba.load_segmenter(folder)
    segmenter = vimamba.create_segmenter("test_vmamba", "fpn", num_classes=2)
    folder = vimamba.save_pretrained(segmenter, tmp_path / "segmenter")
    with pytest.raises(
        CheckpointError, match="holds a BackboneSegmenter, not a network for change"
    ):
        vimamba.load_change_detector(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "mamba_bcd_tini"}, "model='mamba_bcd_tini' is unknown; close names are mamba_b"),
        (
            {"model": "rsm_cd_tiny", "fusion": "difference"},
            "fusion='difference' cannot be combined with",
        ),
        ({"model": "rsm_cd_tiny", "pretrained": True}, "no weights for rsm_cd_tiny"),
        ({"model": "test_vmamba", "fusion": "differ"}, "fusion='differ' is unknown; close names"),
        ({"model": "test_vmamba", "num_classes": 0}, "num_classes=0 must be at least 1"),
        (
            {
                "model": "test_vmamba",
                "fusion": "change_mamba",
                "fusion_kwargs": {"arrangements": ["parallel", "parallel"]},
            },
            r"arrangements=\('parallel', 'parallel'\) must be one or more of .*, each once",
        ),
        (
            {"model": "mamba_bcd_tiny", **SMALL, "arrangements": ["crossed"]},
            "arrangement='crossed' is unknown; choose from",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        vimamba.create_change_detector(**{"num_classes": 2, **arguments})


def test_images_that_are_no_two_dates_are_refused():
    network = create("test_vmamba", head="fpn").eval()
    image = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"after of shape \(1, 3, 32, 33\) must be images of one"):
        network(image, torch.randn(1, 3, 32, 33))
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\) without after must be both dates"):
        network(image)
    with pytest.raises(ValueError, match=r"\(1, 3, 3, 32, 32\) without after must be both dates"):
        network(torch.randn(1, 3, 3, 32, 32))
    with pytest.raises(ValueError, match="x of 3 dimensions must have 4"):
        network(image[0], image[0])
