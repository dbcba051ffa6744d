"""`vimamba export`: its output, and its errors."""

import json
import shutil
import sys

import onnxruntime
import pytest
import timm
import torch
from PIL import Image

import vimamba
from tests.closeness import assert_same
from vimamba.cli import main
from vimamba.cli.runs import find_checkpoint, load_task


@pytest.fixture
def start_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_becomes_an_onnx_file_with_its_weights(run, start_folder, capsys):
    assert main(["export", str(run), "--to", "onnx", "--out", "deep/stripes.onnx"]) == 0
    out = capsys.readouterr().out
    assert "test_vit to onnx: input batch x 3 x height x width" in out
    assert "note: height must be at least 16" in out
    task = load_task(run, find_checkpoint(run, "best"))
    image = torch.randn(5, 3, 16, 16)
    session = onnxruntime.InferenceSession("deep/stripes.onnx")
    (logits,) = session.run(None, {"image": image.numpy()})
    expected = task.scored_net(image).detach()
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    report = json.loads((start_folder / "deep" / "stripes.onnx.json").read_text())
    assert [check["shape"][0] for check in report["checks"]] == [1, 3, 2]
    assert report["versions"]["opset"] == "18"
    config = json.loads((run / "export" / "config.json").read_text())
    assert report["label_names"] == config["label_names"]
    assert report["preprocessing"] == config["preprocessing"]
    assert report["data_config"]["mean"] == config["pretrained_cfg"]["mean"]


def test_a_run_becomes_a_folder_that_timm_loads(run, start_folder, capsys):
    assert main(["export", str(run), "--to", "safetensors", "--out", "stripes"]) == 0
    assert 'timm.create_model("local-dir:stripes", pretrained=True)' in capsys.readouterr().out
    model = timm.create_model("local-dir:stripes", pretrained=True).eval()
    task = load_task(run, find_checkpoint(run, "best"))
    image = torch.randn(2, 3, 16, 16)
    assert_same(model(image), task.scored_net(image))
    assert model.pretrained_cfg["label_names"] == task.class_names


def test_a_folder_of_something_else_is_not_replaced(run, start_folder, capsys):
    (start_folder / "photos").mkdir()
    (start_folder / "photos" / "only.jpg").write_text("the only copy")
    assert main(["export", str(run), "--to", "safetensors", "--out", "photos"]) == 2
    assert "folder='photos' exists and has no model" in capsys.readouterr().err
    assert (start_folder / "photos" / "only.jpg").read_text() == "the only copy"


@pytest.fixture(scope="module")
def mask_run(tmp_path_factory):
    """A segmentation run of one epoch."""
    root = tmp_path_factory.mktemp("squares")
    for number in range(8):
        image, mask = Image.new("RGB", (40, 40)), Image.new("L", (40, 40))
        for picture, value in ((image, (200, 9, 90)), (mask, 255)):
            picture.paste(value, (number, 4, number + 20, 24))
        for folder, picture in (("images", image), ("masks", mask)):
            (root / "data" / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / "data" / folder / f"{number}.png")
    args = ["--task", "segmentation", "--data", str(root / "data"), "--model", "vm_unet"]
    args += ["--model.model_kwargs", "{depths: [1, 1], decoder_depths: [1, 1], dims: [8, 16]}"]
    args += ["--img-size", "32", "--epochs", "1", "--batch-size", "4", "--workers", "0"]
    assert main(["fit", *args, "--out", str(root / "run")]) == 0
    return root / "run"


def test_a_segmentation_run_becomes_a_file_that_takes_any_size(mask_run, start_folder, capsys):
    assert main(["export", str(mask_run), "--to", "onnx", "--out", "squares.onnx"]) == 0
    assert "vm_unet to onnx: input batch x 3 x height x width" in capsys.readouterr().out
    net = vimamba.load_segmenter(mask_run / "export").eval()
    session = onnxruntime.InferenceSession("squares.onnx")
    for size in ((2, 3, 32, 32), (3, 3, 45, 71)):
        image = torch.randn(size)
        expected = net(image).detach()
        (logits,) = session.run(None, {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    report = json.loads((start_folder / "squares.onnx.json").read_text())
    config = json.loads((mask_run / "export" / "config.json").read_text())
    assert report["preprocessing"] == config["preprocessing"]
    assert report["label_names"] == config["label_names"]


def test_a_segmentation_run_becomes_a_folder(mask_run, start_folder, capsys):
    assert main(["export", str(mask_run), "--to", "safetensors", "--out", "squares"]) == 0
    assert 'vimamba.load_network("squares") loads it' in capsys.readouterr().out
    ours, theirs = (start_folder / "squares", mask_run / "export")
    kept = ("network", "task", "preprocessing", "label_names", "label_values")
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (ours, theirs))
    assert {key: one[key] for key in kept} == {key: other[key] for key in kept}
    image = torch.randn(1, 3, 45, 71)
    nets = [vimamba.load_segmenter(folder) for folder in (ours, theirs)]
    torch.testing.assert_close(nets[0](image), nets[1](image), rtol=0, atol=0)
    assert main(["export", "squares", "--to", "torch-export", "--out", "again.pt2"]) == 0


def test_the_size_can_be_fixed(run, start_folder, capsys):
    out = ["--out", "stripes.onnx", "--fixed-size", "--img-size", "24"]
    assert main(["export", str(run), "--to", "onnx", *out]) == 0
    assert "test_vit to onnx: input batch x 3 x 24 x 24" in capsys.readouterr().out


def test_a_model_with_a_checkpoint_is_exported_under_its_name(start_folder):
    model = timm.create_model("test_vim", num_classes=3).eval()
    torch.save(model.state_dict(), "weights.pth")
    options = ["--checkpoint", "weights.pth", "--model-kwargs", "num_classes=3"]
    assert main(["export", "test_vim", "--to", "torch-export", *options]) == 0
    image = torch.randn(1, 3, 96, 96)
    again = torch.export.load(start_folder / "test_vim.pt2").module()
    torch.testing.assert_close(again(image), model(image))


def test_a_run_is_pushed_to_the_hub_with_its_classes(run, monkeypatch, capsys):
    pushed = {}

    def push(net, repo, **options):
        pushed.update(options, net=net, repo=repo)
        return "https://hub/commit"

    monkeypatch.setattr("vimamba.hub.push_to_hub", push)
    assert main(["export", str(run), "--to", "hub", "--repo", "me/stripes", "--private"]) == 0
    assert "pushed to https://hub/commit" in capsys.readouterr().out
    assert pushed["repo"] == "me/stripes"
    assert pushed["private"]
    assert pushed["label_names"] == ["broad", "fine", "middle"]
    assert len(pushed["data_config"]["mean"]) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["vmamba_tinyy", "--to", "onnx"], "'vmamba_tinyy' is neither a model"),
        (["test_vim", "--to", "hub"], "--to hub needs --repo OWNER/NAME"),
        (["test_vim", "--to", "onnx", "--repo", "a/b"], "--repo is for --to hub, not for onnx"),
        (["test_vim", "--to", "onnx", "--model-kwargs", "depth"], "must have the form NAME=VALUE"),
        (["test_vim", "--to", "onnx", "--model-kwargs", "deep=1"], "keyword argument 'deep'"),
        (["test_vim", "--to", "onnx", "--checkpoint", "no.pth"], "no.pth is not a file"),
        (["test_vim", "--to", "onnx", "--img-size", "0"], "--img-size 0 must be at least 1"),
        (["test_vim", "--to", "onnx", "--out", "."], "is a folder; expected the name of a file"),
        (["test_vim", "--to", "safetensors", "--out", __file__], "expected the name of a folder"),
        (["test_vim", "--to", "onnx", "--out", f"{__file__}/a.onnx"], "cannot be written in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(args, message, start_folder, capsys):
    assert main(["export", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(start_folder.iterdir()) == []


def test_options_of_a_model_do_not_go_with_a_run(run, capsys):
    assert main(["export", str(run), "--to", "onnx", "--pretrained"]) == 2
    assert "--pretrained is for a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "extra"), [("onnxruntime", "export"), ("onnxscript", "export")]
)
def test_a_missing_package_is_reported_with_its_extra(
    package, extra, start_folder, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "vimamba.exporting.onnx_file", raising=False)
    assert main(["export", "test_vim", "--to", "onnx"]) == 2
    assert f'pip install "vimamba[{extra}]"' in capsys.readouterr().err
    assert list(start_folder.iterdir()) == []


def test_a_run_interrupted_before_its_export_is_exported(run, start_folder, capsys):
    shutil.copytree(run, "run", ignore=shutil.ignore_patterns("export"))
    assert main(["export", "run", "--to", "safetensors", "--out", "x"]) == 0
    again, first = (
        timm.create_model(f"local-dir:{f}", pretrained=True) for f in ("x", run / "export")
    )
    assert all(torch.equal(w, first.state_dict()[k]) for k, w in again.state_dict().items())
    for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode", "label_names"):
        assert again.pretrained_cfg[name] == first.pretrained_cfg[name]
    assert main(["doctor", "run"]) == 0
    (start_folder / "run" / "checkpoints" / "best.ckpt").unlink()
    capsys.readouterr()
    assert main(["doctor", "run"]) == 2
    assert "--ckpt last takes" in capsys.readouterr().err
    assert main(["doctor", "run", "--ckpt", "last"]) == 0


def test_exported_folders_are_networks_as_well(run, mask_run, start_folder, capsys):
    for name in (str(run / "export"), f"local-dir:{run / 'export'}", str(mask_run / "export")):
        assert main(["doctor", name]) == 0, name
    assert main(["export", str(run / "export"), "--to", "safetensors", "--out", "x"]) == 0
    assert json.loads((start_folder / "x" / "config.json").read_text())["label_names"] == [
        "broad", "fine", "middle",
    ]  # fmt: skip
    capsys.readouterr()
    assert main(["export", ".", "--to", "onnx"]) == 2
    assert "neither a run (there is no config.yaml) nor a model's" in capsys.readouterr().err
