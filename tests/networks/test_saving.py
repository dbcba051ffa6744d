"""Whole networks as folders and Hub repositories, and back."""

import json

import pytest
import timm
import torch

import vimamba
from tests.closeness import assert_same
from tests.networks.test_change import NETWORKS as CHANGE
from tests.networks.test_registry import Sharpen
from tests.test_hub import Hub
from vimamba.hub import load_folder
from vimamba.networks import ChangeDetector, Registrar, Segmenter, UMamba, loading, registry

VM_UNET = {"depths": (1, 1), "decoder_depths": (1, 1), "dims": (8, 16)}
VSS = {"dims": (4, 6), "depths": (0, 1), "num_classes": 2}
NETWORKS = {
    "vm_unet": {**VM_UNET, "num_classes": 1, "scan_order": ["columns", "cross"]},
    "swin_umamba": {"depths": (1, 1), "dims": (8, 16, 32), "num_classes": 3, "aux": True},
    "swin_umamba_d": {"depths": (1, 1), "dims": (8, 16), "num_classes": 3, "in_chans": 4},
    "umamba_bot_2d": {"patch_size": (16, 24), "num_classes": 2},
    "umamba_enc_2d": {"features_per_stage": (8, 16), "img_size": 24, "num_classes": 2},
    "umamba_bot_3d": {"patch_size": (4, 16, 16), "spacing": (3, 1, 1), "num_classes": 2},
    "umamba_enc_3d": {"patch_size": (8, 8, 16), "num_classes": 2, "in_chans": 1},
    **{
        f"mambahsi_{scene}": {"dim": 8, "num_classes": 3, "in_chans": 5}
        for scene in ("pavia", "houston", "hanchuan", "honghu")
    },
    "rsm_ss_tiny": {"depths": (1, 1), "dims": (8, 16), "num_classes": 3},
    **{name: {"num_classes": 3, **args} for name, args in CHANGE.items()},
    "backbone_change_detector": {"model": "test_vmamba", "head": "fpn", "fusion": "concatenation"},
    "segmamba": {"depths": (1,), "dims": (4,), "hidden_size": 8, "num_classes": 2, "in_chans": 1},
    **{f"vss_unet_3d_{size}": VSS for size in ("nano", "tiny", "small", "base")},
    **{name: {"embed_dim": 6, "head_dim": 4} for name in vimamba.list_networks("registration")},
    "backbone_segmenter": {"model": "test_vmamba", "head": "fpn", "num_classes": 3, "aux": True},
}


def read(folder):
    return json.loads((folder / "config.json").read_text())


def test_every_network_is_tested():
    assert vimamba.list_networks() == sorted(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_gives_the_same_network(name, tmp_path):
    torch.manual_seed(0)
    net = vimamba.create_network(name, **NETWORKS[name]).eval()
    folder = vimamba.save_pretrained(net, tmp_path / "net")
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    again = vimamba.load_network(folder)
    assert type(again) is type(net)
    assert not again.training
    any_size = [17, 21] if len(net.cell) == 2 else [4, 9, 11]
    one_size = net.pretrained_cfg["input_size"][1:]
    size = one_size if name.startswith("umamba_enc") else any_size
    image = torch.randn(1, net.in_chans, *size)
    # registration and change take two
    images = [image, image.flip(2)] if isinstance(net, Registrar | ChangeDetector) else [image]
    with torch.no_grad():
        ours, theirs = net(*images), again(*images)
    for one, other in zip(
        *((x,) if isinstance(x, torch.Tensor) else x for x in (ours, theirs)), strict=True
    ):
        if one is not None:
            assert_same(one, other)
    # saving again writes the same files
    other = vimamba.save_pretrained(again, tmp_path / "other")
    assert read(other) == read(folder)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_vim", "test_medmamba"])
def test_a_head_on_any_backbone_is_saved(name, tmp_path):
    net = vimamba.create_segmenter(name, "unet", num_classes=2, img_size=64).eval()
    again = vimamba.load_segmenter(vimamba.save_pretrained(net, tmp_path / "net"))
    image = torch.randn(1, 3, 50, 60)
    with torch.no_grad():
        assert_same(net(image), again(image))


def test_a_backbone_of_files_is_saved_by_its_name(tmp_path):
    backbone = timm.create_model("test_vmamba", num_classes=5, scan_order="spiral")
    source = vimamba.save_pretrained(backbone, tmp_path / "backbone")
    net = vimamba.create_segmenter(f"local-dir:{source}", "fpn", num_classes=2, pretrained=True)
    folder = vimamba.save_pretrained(net, tmp_path / "net")
    assert read(folder)["network"]["model"] == "test_vmamba"
    assert read(folder)["network"]["scan_order"] == "spiral"
    source.rename(tmp_path / "away")
    image = torch.randn(1, 3, 32, 32)
    assert_same(net.eval()(image), vimamba.load_segmenter(folder)(image))


def test_the_folder_says_what_its_users_have_to_know(tmp_path):
    net = vimamba.create_network("vm_unet", **VM_UNET, num_classes=1)
    folder = vimamba.save_pretrained(
        net, tmp_path / "net", label_names=["skin", "lesion"], label_values=[0, 255], license="mit",
        data_config={"mean": (0.1,) * 3, "std": (0.5,) * 3}, preprocessing={"in_chans": 3},
    )  # fmt: skip
    config = read(folder)
    assert config["task"] == "segmentation"
    assert config["label_names"] == ["skin", "lesion"]
    assert config["label_values"] == [0, 255]
    assert config["preprocessing"] == {"in_chans": 3}
    again = load_folder(folder)
    assert again.pretrained_cfg["mean"] == (0.1, 0.1, 0.1)
    assert again.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
    assert again.license == "mit"
    card = (folder / "README.md").read_text()
    for text in ("\nlicense: mit\n", "pipeline_tag: image-segmentation", "2 classes", "vm_unet",
                 "arXiv:2402.02491", "Preprocessing"):  # fmt: skip
        assert text in card
    snippet = card.split("```python\n")[1].split("```")[0]
    scope = {}
    exec(snippet, scope)
    assert isinstance(scope["network"], Segmenter)


def test_weights_of_nobody_have_no_license_and_those_of_others_theirs(tmp_path):
    net = vimamba.create_network("vm_unet", **VM_UNET, num_classes=2)
    assert read(vimamba.save_pretrained(net, tmp_path / "net"))["license"] == "unknown"
    weights = {"file": str(tmp_path / "w.pth"), "license": "cc-by-4.0"}
    torch.save(timm.create_model("test_vmamba").state_dict(), weights["file"])
    net = vimamba.create_segmenter(
        "test_vmamba", num_classes=2, pretrained=True, pretrained_cfg_overlay=weights
    )
    folder = vimamba.save_pretrained(net, tmp_path / "other")
    assert read(folder)["license"] == "cc-by-4.0"
    assert "w.pth" not in (folder / "config.json").read_text()


def test_a_network_of_another_task_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_NETWORKS", dict(registry._NETWORKS))
    vimamba.register_network(Sharpen, task="restoration", name="sharpen")
    net = vimamba.create_network("sharpen", width=5)
    folder = vimamba.save_pretrained(net, tmp_path / "net")
    assert "pipeline_tag: image-to-image" in (folder / "README.md").read_text()
    again = vimamba.load_network(folder)
    image = torch.randn(1, 3, 8, 8)
    assert_same(net(image), again(image))
    with pytest.raises(ValueError, match="holds a Sharpen, not a segmentation network"):
        vimamba.load_segmenter(folder)
    with pytest.raises(ValueError, match="2 label_names for 0 classes"):
        vimamba.save_pretrained(net, folder, label_names=["a", "b"])


def test_what_could_not_be_made_again_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"created from its class, UMamba; .* vimamba\.create_network"
    ):
        vimamba.save_pretrained(UMamba(3, 2), tmp_path / "net")
    net = vimamba.create_network("vm_unet", **VM_UNET, num_classes=1)
    with pytest.raises(ValueError, match="3 label_names for 2 classes"):
        vimamba.save_pretrained(net, tmp_path / "net", label_names=["a", "b", "c"])
    net.classifier = torch.nn.Conv2d(2, 4, 1)
    with pytest.raises(
        ValueError, match=r"model is not what \{'name': 'vm_unet'.*2 weights differ"
    ):
        vimamba.save_pretrained(net, tmp_path / "net")
    net.config["dims"] = torch.tensor([8, 16])
    with pytest.raises(ValueError, match=r"dims=tensor\(\[ 8, 16\]\) of the network cannot be"):
        vimamba.save_pretrained(net, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_are_refused(tmp_path):
    net = vimamba.create_network("vm_unet", **VM_UNET, num_classes=1)
    folder = vimamba.save_pretrained(net, tmp_path / "net")
    config = read(folder)
    for change in ({"num_classes": 2}, {"depths": [1, 2]}):
        network = {**config["network"], **change}
        (folder / "config.json").write_text(json.dumps({**config, "network": network}))
        with pytest.raises(ValueError, match=r"net'.*state_dict"):
            vimamba.load_network(folder)


def test_the_hub_keeps_a_network(tmp_path, monkeypatch):
    Hub.log.clear()
    monkeypatch.setattr("vimamba.hub.HfApi", Hub)
    net = vimamba.create_network("vm_unet", **VM_UNET, num_classes=1).eval()
    vimamba.push_to_hub(net, "net", label_names=["skin", "lesion"])
    *_, files = Hub.log[1]
    assert b'vimamba.load_network("hf-hub:me/net")' in files["README.md"]

    def download(repo, *, revision, allow_patterns):
        assert (repo, revision) == ("me/net", "v1")
        for name in allow_patterns:
            (tmp_path / name).write_bytes(files[name])
        return str(tmp_path)

    monkeypatch.setattr(loading, "snapshot_download", download)
    image = torch.randn(1, 3, 16, 16)
    assert_same(net(image), vimamba.load_network("hf-hub:me/net@v1")(image))
