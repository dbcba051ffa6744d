"""Networks of any task, by name."""

from functools import partial

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import vimamba
from vimamba.names import near_names
from vimamba.networks import Network, registry


class Sharpen(Network):
    """A network without classes, padding or a backbone."""

    def __init__(self, width=4, in_chans=3):
        cfg = {"architecture": "sharpen", "input_size": (in_chans, 8, 8)}
        super().__init__(in_chans, pretrained_cfg=cfg)
        self.layers = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, padding=1), nn.Conv2d(width, in_chans, 1)
        )

    def forward(self, x):
        return x + self.layers(x)

    def official_rules(self):
        return {r"model\.(.*)": r"layers.\1"}


@pytest.fixture(autouse=True)
def own_networks(monkeypatch):
    """Remove what a test registered."""
    monkeypatch.setattr(registry, "_NETWORKS", dict(registry._NETWORKS))
    vimamba.register_network(Sharpen, task="restoration", name="sharpen")


def test_networks_are_listed_by_task():
    assert vimamba.list_networks("restoration") == ["sharpen"]
    tasks = {registry.find_network(name).task for name in vimamba.list_networks()}
    assert {"restoration", "segmentation", "registration"} <= tasks
    all_of_them = [name for task in tasks for name in vimamba.list_networks(task)]
    assert vimamba.list_networks() == sorted(all_of_them)
    assert set(vimamba.list_segmenters()) < set(vimamba.list_networks("segmentation"))
    with pytest.raises(ValueError, match="task='restorations' is unknown; close names are resto"):
        vimamba.list_networks("restorations")


def test_a_network_keeps_what_makes_it_again():
    overlay = {"file": "weights.pth"}
    depths = {"depths": [1, 1], "decoder_depths": [1, 1], "dims": [8, 16]}
    net = vimamba.create_network(
        "vm_unet", num_classes=2, pretrained=False, pretrained_cfg_overlay=overlay, **depths
    )
    assert net.config == {"name": "vm_unet", "num_classes": 2, **depths}
    depths["depths"].append(7)
    assert net.config["depths"] == [1, 1]
    assert type(vimamba.create_network(**net.config)) is type(net)
    assert Sharpen().config is None


def test_a_segmenter_is_a_network():
    net = vimamba.create_segmenter("test_resnet", "unet", num_classes=2, aux=True)
    assert net.config["name"] == "backbone_segmenter"
    again = vimamba.create_network(**net.config)
    assert again.state_dict().keys() == net.state_dict().keys()


def test_a_network_without_a_backbone_trains_and_loads(tmp_path):
    net = vimamba.create_network("sharpen", width=5)
    groups = create_optimizer_v2(net, "adamw", lr=1.0, layer_decay=0.5, weight_decay=0.1)
    assert {group["lr_scale"] for group in groups.param_groups} == {1.0}
    assert net.body is None
    assert net.body_parameters() == []
    net.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="enable=True: Sharpen has no gradient checkpointing"):
        net.set_grad_checkpointing()
    official = {f"model.{key}": torch.rand_like(v) for key, v in net.layers.state_dict().items()}
    torch.save({"params": official}, tmp_path / "official.pth")
    net.load_pretrained(tmp_path / "official.pth")
    assert torch.equal(net.layers[0].weight, official["model.0.weight"])
    torch.save({**official, "model.2.weight": torch.zeros(1)}, tmp_path / "official.pth")
    with pytest.raises(ValueError, match="does not fit: 1 unexpected key"):
        net.load_pretrained(tmp_path / "official.pth")


def test_a_name_is_given_once():
    register = vimamba.register_network(task="restoration", name="sharpen")
    with pytest.raises(ValueError, match="network 'sharpen' is already registered; replace=True"):
        register(Sharpen)
    vimamba.register_network(Sharpen, task="segmentation", name="sharpen", replace=True)
    with pytest.warns(UserWarning, match="network 'vm_unet' replaces vimamba's own"):
        vimamba.register_network(Sharpen, task="segmentation", name="vm_unet")
    with pytest.raises(ValueError, match="name='my net' of a network must be an identifier"):
        vimamba.register_network(Sharpen, task="restoration", name="my net")


def test_an_unknown_name_gets_suggestions():
    with pytest.raises(ValueError, match="name='vm_unett' is unknown; close names are vm_unet"):
        vimamba.create_network("vm_unett", num_classes=2)


@pytest.mark.parametrize(
    ("register", "kind"),
    [
        (partial(vimamba.register_network, task="restoration"), "network"),
        (vimamba.register_head, "head"),
        (vimamba.register_fusion, "fusion"),
        (vimamba.register_scan_order, "scan order"),
    ],
    ids=["network", "head", "fusion", "scan_order"],
)
def test_a_name_instead_of_a_function_is_refused(register, kind):
    with pytest.raises(TypeError, match=f"received 'mine', expected the function .* of a {kind};"):
        register("mine")


def test_close_names_are_of_the_kind_of_the_closest():
    networks, backbones = ["vm_unet", "umamba_enc_2d"], ["vmamba_tiny", "vim_tiny", "unet_like"]
    assert near_names("vm_unt", networks, backbones) == "close names are vm_unet"
    assert near_names("vmamba_tny", networks, backbones) == "close names are vmamba_tiny, vim_tiny"
    assert near_names("zzz", networks, backbones) == ""


def test_anything_but_a_network_is_refused():
    vimamba.register_network(nn.Linear, task="restoration", name="line")
    with pytest.raises(TypeError, match="name='line' makes a Linear, not a"):
        vimamba.create_network("line", in_features=1, out_features=1)
    vimamba.register_network(
        lambda **kwargs: Sharpen(), task="segmentation", name="sharpen", replace=True
    )
    with pytest.raises(TypeError, match="model='sharpen' makes a Sharpen, not a Segmenter"):
        vimamba.create_segmenter("sharpen", num_classes=2)
