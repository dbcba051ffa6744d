import json
import warnings
from types import SimpleNamespace
from typing import ClassVar

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model

import vimamba
import vimamba.hub
from tests.backbones import TEST_MODELS, kinds_first
from tests.closeness import assert_same
from vimamba.errors import WriteError

# timm gives a model without weights no license; this sets what a download would have set
PUBLISHED = {"license": "mit", "origin_url": "https://example.org", "notes": ("top-1: 82.6",)}


def read(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", kinds_first(TEST_MODELS))
def test_a_folder_gives_timm_the_same_model(name, tmp_path):
    model = timm.create_model(name, num_classes=3, in_chans=4, scan_order="spiral").eval()
    folder = vimamba.save_pretrained(model, tmp_path / "model", label_names=["a", "b", "c"])
    assert folder == tmp_path / "model"
    files = {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == files
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.randn(1, 4, *model.pretrained_cfg["input_size"][1:])
    assert_same(model(image), again(image))
    assert again.pretrained_cfg["label_names"] == ["a", "b", "c"]


def test_the_number_of_classes_is_said_once(tmp_path):
    model = timm.create_model("test_vim", num_classes=3, embed_dim=32)
    config = read(vimamba.save_pretrained(model, tmp_path / "model"))
    assert config["num_classes"] == 3
    assert config["model_args"]["embed_dim"] == 32
    assert "num_classes" not in config["model_args"]


def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch):
    folder = tmp_path / "deep" / "model"
    vimamba.save_pretrained(timm.create_model("test_vim"), folder)
    (folder / "stale.bin").touch()
    weights = (folder / "model.safetensors").read_bytes()

    def fail(*args):
        raise OSError("the disk is full")

    other = timm.create_model("test_vmamba")
    with monkeypatch.context() as patch:
        patch.setattr(vimamba.hub, "model_card", fail)
        with pytest.raises(WriteError, match="cannot be written: the disk is full"):
            vimamba.save_pretrained(other, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert (folder / "model.safetensors").read_bytes() == weights
    vimamba.save_pretrained(other, folder)
    assert read(folder)["architecture"] == "test_vmamba"
    assert not (folder / "stale.bin").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("published", "requested", "license", "line"),
    [
        ({}, None, "unknown", "License of the weights: unknown\n"),
        ({}, "cc-by-4.0", "cc-by-4.0", "License of the weights: cc-by-4.0\n"),
        (PUBLISHED, None, "mit", "weights: mit (published at https://example.org)\n"),
        (PUBLISHED, "unknown", "unknown", "License of the weights: unknown\n"),
    ],
)
def test_the_card_states_the_weights_license(published, requested, license, line, tmp_path):
    model = timm.create_model("test_vmamba", pretrained_cfg_overlay=published)
    folder = vimamba.save_pretrained(model, tmp_path / "net", license=requested)
    card = (folder / "README.md").read_text()
    assert f"\nlicense: {license}\n" in card
    assert line in card
    assert read(folder)["pretrained_cfg"].get("license", "unknown") == license
    # the accuracy belongs to the published weights
    assert "top-1" not in (folder / "config.json").read_text()


def test_the_card_says_that_vimamba_is_needed_and_its_snippet_runs(tmp_path):
    folder = vimamba.save_pretrained(timm.create_model("test_vim", num_classes=7), tmp_path / "net")
    card = (folder / "README.md").read_text()
    assert "needs the `vimamba` package" in card
    assert "`test_vim` (Vision Mamba: " in card
    assert "7 classes" in card
    snippet = card.split("```python\n")[1].split("```")[0]
    scope = {}
    exec(snippet, scope)
    assert scope["model"].num_classes == 7


def test_a_backbone_is_saved_as_one(tmp_path):
    model = timm.create_model("test_vmamba", num_classes=0)
    folder = vimamba.save_pretrained(model, tmp_path / "net")
    assert "pipeline_tag: image-feature-extraction" in (folder / "README.md").read_text()
    timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_labels_must_be_as_many_as_the_classes(tmp_path):
    model = timm.create_model("test_vim", num_classes=3)
    with pytest.raises(ValueError, match="2 label_names for 3 classes"):
        vimamba.save_pretrained(model, tmp_path / "net", label_names=["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_model_is_saved_as_the_model_itself(tmp_path):
    model = timm.create_model("test_vmamba", num_classes=3)
    folder = vimamba.save_pretrained(torch.compile(model), tmp_path / "net")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert all(torch.equal(w, again.state_dict()[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Linear(3, 3),
        lambda: timm.create_model("test_vmamba", features_only=True),
        lambda: get_peft_model(
            timm.create_model("test_vmamba"), LoraConfig(target_modules=["fc1"])
        ),
    ],
    ids=["layer", "features", "adapted"],
)
def test_what_timm_could_not_load_is_refused(make, tmp_path):
    with pytest.raises(TypeError, match="not a timm classifier or backbone"):
        vimamba.save_pretrained(make(), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_taken_for_a_folder(tmp_path):
    (tmp_path / "net").write_text("mine")
    with pytest.raises(ValueError, match="not replaced"):
        vimamba.save_pretrained(timm.create_model("test_vim"), tmp_path / "net")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


class Hub:
    """Replaces the Hub: stores uploads."""

    log: ClassVar = []

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo, *, private, exist_ok):
        assert exist_ok
        self.log.append(("create", repo, private, self.token))
        return SimpleNamespace(repo_id=f"me/{repo}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        self.log.append(("upload", repo_id, commit_message, files))
        return "https://huggingface.co/me/net/commit/1"


def test_a_push_uploads_the_folder_without_pickles(monkeypatch):
    Hub.log.clear()
    monkeypatch.setattr(vimamba.hub, "HfApi", Hub)
    model = timm.create_model("test_vim", num_classes=2)
    url = vimamba.push_to_hub(model, "net", private=True, token="t", license="mit", message="Go")
    assert url == "https://huggingface.co/me/net/commit/1"
    assert Hub.log[0] == ("create", "net", True, "t")
    action, repo, message, files = Hub.log[1]
    assert (action, repo, message) == ("upload", "me/net", "Go")
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert b'timm.create_model("hf-hub:me/net", pretrained=True)' in files["README.md"]
    assert b"\nlicense: mit\n" in files["README.md"]


def test_a_saved_model_with_another_scan_order_is_warned_of(tmp_path):
    for folder, kwargs in (("usual", {}), ("other", {"scan_order": "serpentine"})):
        model = timm.create_model("test_vim", num_classes=3, **kwargs)
        vimamba.save_pretrained(model, tmp_path / folder)
    usual, other = (f"local-dir:{tmp_path / folder}" for folder in ("usual", "other"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for address in (usual, other):
            timm.create_model(address, pretrained=True)
        timm.create_model(other, scan_order="cross")  # new weights
    said = r"scan_order=\['cross'\] differs from that of the saved weights, \['serpentine'\]"
    with pytest.warns(UserWarning, match=said):
        timm.create_model(other, pretrained=True, scan_order="cross")
    order = "raster + columns"
    with pytest.warns(UserWarning, match=r"saved weights, \['bidirectional'\]"):
        timm.create_model(usual, pretrained=True, features_only=True, scan_order=order)
