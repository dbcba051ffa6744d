"""`vimamba.identify` also recognizes whole networks, and `vimamba convert` writes them."""

import pytest
import torch

import vimamba
from tests.parity.official import shapes_only
from vimamba.checkpoints import CheckpointError, find_identity
from vimamba.cli import main

OFFICIAL = {
    "vmunet_isic": ("vm_unet", 1, 3),
    "swin_umamba": ("swin_umamba", 14, 1),
    "swin_umamba_d": ("swin_umamba_d", 14, 1),
    "umamba_bot_2d": ("umamba_bot_2d", 14, 1),
    "mambahsi_pavia": ("mambahsi_pavia", 9, 103),
    "mambahsi_honghu": ("mambahsi_honghu", 22, 270),
    "rsm_ss_tiny": ("rsm_ss_tiny", 1, 3),
    "rsm_cd_tiny": ("rsm_cd_tiny", 1, 3),
    "mamba_bcd_small": ("mamba_bcd_small", 2, 3),
    "mamba_bcd_base": ("mamba_bcd_base", 2, 3),
    "mamba_scd_tiny": ("mamba_scd_tiny", 7, 3),
    "mamba_bda_base": ("mamba_bda_base", 5, 3),
    "segmamba": ("segmamba", 4, 4),
    "mambamorph_feat": ("mambamorph_feat", 0, 1),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_are_identified_with_classes_and_channels(name):
    found = find_identity({"network_weights": shapes_only(name)})
    assert (found.variant, found.num_classes, found.in_chans) == OFFICIAL[name]
    # networks for hyperspectral cubes differ only in bands and classes
    assert len(found.others) == (3 if name.startswith("mambahsi") else 0)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("mambamorph", ["mambamorph_ori"]),
        ("vmambamorph", []),
        ("vmambamorph_rec", ["vmambamorph_feat"]),
    ],
)
def test_all_registration_networks_with_the_same_layout_are_identified(name, others):
    found = find_identity(shapes_only(name))
    assert {found.variant, *(o.variant for o in found.others)} == {name, *others}


def test_our_own_file_is_identified_written_and_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = vimamba.create_network("vm_unet", num_classes=3, in_chans=2).state_dict()
    torch.save({"state_dict": {f"net.{k}": v for k, v in state.items()}}, "run.ckpt")
    assert main(["identify", "run.ckpt"]) == 0
    line = 'network = vimamba.create_network("vm_unet", num_classes=3, in_chans=2); network.load'
    assert line in capsys.readouterr().out
    assert main(["convert", "run.ckpt", "--out", "net.safetensors"]) == 0
    assert main(["convert", "run.ckpt", "--out", "net"]) == 0
    assert 'vimamba.load_network("net")' in capsys.readouterr().out
    again = vimamba.create_network("vm_unet", num_classes=3, in_chans=2)
    again.load_pretrained("net.safetensors")
    for network in (again, vimamba.load_network("net")):
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_the_error_says_how_networks_of_other_sizes_are_tried(tmp_path):
    net = vimamba.create_segmenter("vm_unet", num_classes=1, dims=(8, 16, 32, 64))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"create_network\(.*\.load_pretrained\(FILE\)"):
        vimamba.identify(tmp_path / "net.pth")
    net.load_pretrained(tmp_path / "net.pth")
