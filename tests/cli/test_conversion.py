"""`vimamba convert`: its output, and its errors."""

import stat

import pytest
import timm
import torch
from safetensors import safe_open
from torch.testing import assert_close
from transformers import AutoModelForImageClassification

from tests.parity.official import filled_state
from vimamba.cli import main

# no other model has its names and shapes
OFFICIAL, MODEL = "vim_tiny_plus_patch16_stride8_224", "vim_tiny_patch16_stride8_224"


@pytest.fixture
def start_folder(tmp_path, monkeypatch):
    """A folder with an official file, and one of ours that matches two models."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": filled_state(OFFICIAL)}, "official.pth")
    tuned = timm.create_model("vim_tiny_patch16_224", num_classes=4)
    torch.save({"state_dict": {f"model.{k}": v for k, v in tuned.state_dict().items()}}, "own.ckpt")
    return tmp_path


def create(file, **kwargs):
    overlay = {"file": file}
    return timm.create_model(
        MODEL, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs
    ).eval()


def test_a_file_and_a_folder_hold_the_same_model(start_folder, capsys):
    assert main(["convert", "official.pth", "--out", "deep/model.safetensors"]) == 0
    assert "dict(file='deep/model.safetensors')" in capsys.readouterr().out
    assert main(["convert", "official.pth", "--out", "folder"]) == 0
    assert 'timm.create_model("local-dir:folder", pretrained=True)' in capsys.readouterr().out
    expected = create("official.pth").state_dict()
    transformers = AutoModelForImageClassification.from_pretrained("folder")
    for found in (
        create("deep/model.safetensors"),
        timm.create_model("local-dir:folder", pretrained=True),
        transformers.timm_model,
    ):
        assert_close(dict(found.state_dict()), dict(expected), rtol=0, atol=0)
    assert "license: apache-2.0" in (start_folder / "folder" / "README.md").read_text()
    with safe_open("deep/model.safetensors", "pt") as file:
        assert file.metadata()["architecture"] == MODEL
    assert [path.name for path in (start_folder / "deep").iterdir()] == ["model.safetensors"]
    files = start_folder / "own.ckpt", start_folder / "deep" / "model.safetensors"
    assert len({stat.S_IMODE(file.stat().st_mode) for file in files}) == 1


def test_where_two_models_have_the_same_shapes_one_must_be_named(start_folder, capsys):
    args = ["convert", "own.ckpt", "--out", "model.safetensors"]
    assert main(args) == 2
    message = "--model NAME is needed: the file may be vim_tiny_patch16_224 or vim_tiny_rope"
    assert message in capsys.readouterr().err
    assert main([*args, "--model", "vim_tiny_rope_patch16_224"]) == 0
    assert '"vim_tiny_rope_patch16_224", pretrained=True, num_classes=4' in capsys.readouterr().out
    assert main(["identify", "own.ckpt"]) == 0
    out = capsys.readouterr().out
    assert "names and shapes are those of 3 models" in out
    assert "class token in the middle" in out


def test_weights_that_are_not_finite_are_not_written(start_folder, capsys):
    state = filled_state(OFFICIAL)
    state["head.bias"][3] = float("nan")
    torch.save({"model": state}, "nan.pth")
    for out in ("nan.safetensors", "nan"):
        assert main(["convert", "nan.pth", "--out", out]) == 2
        assert "not finite" in capsys.readouterr().err
        assert not (start_folder / out).exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gone.pth", "--out", "x.safetensors"], "gone.pth is not a file"),
        (["official.pth", "--out", "x.pth"], "--out x.pth must end in .safetensors, or name a"),
        (["official.pth", "--out", "."], "exists and has no model; it is not replaced"),
        (["same.safetensors", "--out", "same.safetensors"], "is the file to convert"),
        (
            ["official.pth", "--out", "x.safetensors", "--model", "vmamba_tiny_v0"],
            f"--model vmamba_tiny_v0 does not fit the file, which is {MODEL}",
        ),
    ],
)
def test_a_mistake_is_named(args, message, start_folder, capsys):
    (start_folder / "same.safetensors").touch()
    assert main(["convert", *args]) == 2
    assert message in capsys.readouterr().err
