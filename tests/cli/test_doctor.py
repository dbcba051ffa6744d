"""`vimamba doctor`: the ranges it shows are true, and what is too large is found."""

import re

import pytest
import timm
import torch

from vimamba.cli import main
from vimamba.cli.doctor import observe


def build(name="test_vmamba", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def test_the_ranges_are_those_of_the_outputs():
    model = build(depths=(1,), dims=(16,))
    image = torch.randn(1, 3, 32, 32)
    seen = {}
    norm = model.stages[0].blocks[0].norm1
    norm.register_forward_hook(lambda module, inputs, output: seen.update(norm=output))
    before = [len(module._forward_hooks) for module in model.modules()]
    ranges = {entry.layer: entry for entry in observe(model, image, None)}
    entry = ranges["stages.0.blocks.0.norm1"]
    assert entry.kind == "LayerNorm"
    assert (entry.low, entry.high) == (seen["norm"].min().item(), seen["norm"].max().item())
    assert [len(module._forward_hooks) for module in model.modules()] == before


@pytest.mark.parametrize("name", ["test_vmamba", "test_vim", "test_vmamba_m2"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_the_scan_is_seen_before_the_layer_that_hides_it(name, dtype):
    model = build(name)
    ranges = observe(model, torch.randn(1, 3, 96, 96), dtype)
    layers = [entry.layer for entry in ranges]
    mixer = "blocks.0.mixer" if name == "test_vim" else "stages.0.blocks.0.mixer"
    scan = layers.index(f"{mixer}.scan")
    assert layers.index(f"{mixer}.in_proj") < scan < layers.index(f"{mixer}.out_proj")
    assert not any(entry.overflows for entry in ranges)


def test_the_first_scan_beyond_float16_is_named(tmp_path, capsys):
    model = build()
    with torch.no_grad():
        model.stages[1].blocks[0].mixer.scan.D.fill_(1e7)
    torch.save(model.state_dict(), tmp_path / "large.pth")
    args = ["doctor", "test_vmamba", "--checkpoint", str(tmp_path / "large.pth")]
    assert main([*args, "--batch-size", "1"]) == 1
    out = capsys.readouterr().out
    assert "the first layer that overflows: stages.1.blocks.0.mixer.scan (" in out
    assert "float16 ends at 65504" in out
    # the norm behind it makes small numbers of it, which is why it has to be looked for
    assert main([*args, "--batch-size", "1", "--precision", "16-mixed"]) == 1
    assert "stages.1.blocks.0.mixer.scan (" in capsys.readouterr().out


def test_a_number_that_is_not_finite_is_counted(tmp_path, capsys):
    model = build("test_vim")
    with torch.no_grad():
        model.blocks[1].norm.weight[3] = 3e38  # finite itself, its products only below 1.13
    torch.save(model.state_dict(), tmp_path / "large.pth")
    args = ["doctor", "test_vim", "--checkpoint", str(tmp_path / "large.pth"), "--batch-size", "2"]
    assert main(args) == 1
    found = re.search(
        r"overflows: blocks\.1\.norm \((\d+) numbers not finite\)", capsys.readouterr().out
    )
    # of 37 tokens of two images
    assert 0 < int(found[1]) < 74


def test_weights_that_are_not_finite_are_named_at_once(tmp_path, capsys):
    model = build("test_vim")
    with torch.no_grad():
        model.blocks[1].norm.weight[3] = float("nan")
    torch.save(model.state_dict(), tmp_path / "broken.pth")
    assert main(["doctor", "test_vim", "--checkpoint", str(tmp_path / "broken.pth")]) == 2
    assert (
        "not finite (NaN or infinite) in 1 tensor: blocks.1.norm.weight" in capsys.readouterr().err
    )


def test_a_run_is_examined_on_its_images(run, folder, capsys):
    assert main(["doctor", str(run), "--data", str(folder), "--rows", "5"]) == 0
    out = capsys.readouterr().out
    assert f"test_vit in 32-true, {folder}, 4 x 3 x 16 x 16" in out
    assert "the 5 with the largest numbers" in out
    assert "every number is finite" in out
    # two more lines: the title and the heads; none wider than a terminal
    assert all(len(line) <= 80 for line in out.splitlines()[1:])


def test_any_timm_model_is_examined(capsys):
    assert main(["doctor", "test_convnext", "--batch-size", "1", "--all"]) == 0
    assert "stages.0.blocks.0.conv_dw" in capsys.readouterr().out


@pytest.mark.parametrize("make", [False, True], ids=["absent", "no image"])
def test_unusable_data_is_refused(make, tmp_path, capsys):
    file = tmp_path / "photo.png"
    if make:
        file.write_text("no image")
    assert main(["doctor", "test_vim", "--data", str(file)]) == 2
    assert str(file) in capsys.readouterr().err
