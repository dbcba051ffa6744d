"""`vimamba doctor`: the ranges are correct, and values that are too large are found."""

import re

import numpy as np
import pytest
import timm
import torch
from rasterio.transform import from_origin

import vimamba
from tests.rasters import write_raster
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
    # the following norm makes its output small again, so it has to be found before that
    assert main([*args, "--batch-size", "1", "--precision", "16-mixed"]) == 1
    assert "stages.1.blocks.0.mixer.scan (" in capsys.readouterr().out


def test_a_number_that_is_not_finite_is_counted(tmp_path, capsys):
    model = build("test_vim")
    with torch.no_grad():
        model.blocks[1].norm.weight[3] = 3e38  # finite, but its products only below 1.13
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
    # two more lines: the title and the header; none wider than a terminal
    assert all(len(line) <= 80 for line in out.splitlines()[1:])


def test_any_timm_model_is_examined(capsys):
    assert main(["doctor", "test_convnext", "--batch-size", "1", "--all"]) == 0
    assert "stages.0.blocks.0.conv_dw" in capsys.readouterr().out


@pytest.fixture
def detector(tmp_path):
    """A folder with a change network."""
    torch.manual_seed(0)
    small = {"depths": (1, 1), "dims": (16, 24)}
    net = vimamba.create_change_detector("test_vmamba", head="fpn", num_classes=1, **small)
    return str(vimamba.save_pretrained(net, tmp_path / "net"))


def write_pairs(root, count):
    rng = np.random.default_rng(0)
    for i in range(count):
        for folder in ("before", "after", "masks"):
            values = rng.integers(0, 255, (40, 44, 3)) if folder != "masks" else np.eye(40, 44)
            write_raster(root / folder / f"{i}.tif", values.astype(np.uint8))
    return root


def test_pairs_of_two_dates_that_match_are_examined(detector, tmp_path, capsys):
    root = write_pairs(tmp_path / "pairs", 3)
    args = ["doctor", detector, "--img-size", "32", "--rows", "3", "--data"]
    assert main([*args, str(root)]) == 0
    shown = capsys.readouterr().out
    assert "3 pairs match in size, place, bands and values, labels are binary" in shown
    assert f"{root}, 3 x 2 x 3 x 32 x 32" in shown
    assert main([*args, str(root / "before"), str(root / "after")]) == 0
    assert "3 pairs match in size, place, bands and values\n" in capsys.readouterr().out


def test_what_does_not_match_in_pairs_of_two_dates_is_named(detector, tmp_path, capsys):
    root = write_pairs(tmp_path / "pairs", 6)
    one = np.ones((40, 44, 3))
    write_raster(root / "after" / "0.tif", one.astype(np.uint8), crs="EPSG:32634")
    east = from_origin(500_030, 5_000_000, 10, 10)
    write_raster(root / "after" / "1.tif", one.astype(np.uint8), transform=east)
    write_raster(root / "after" / "2.tif", one.astype(np.uint16) * 900)
    write_raster(root / "after" / "3.tif", np.ones((40, 45, 3), dtype=np.uint8))
    write_raster(root / "masks" / "4.tif", np.full((40, 44), 0.5, dtype=np.float32))
    write_raster(root / "before" / "5.tif", np.ones((40, 44, 5), dtype=np.uint8))
    args = ["doctor", detector, "--img-size", "32", "--data", str(root)]
    assert main(args) == 1
    shown = capsys.readouterr().out
    for what in ("CRS", "place", "values", "size", "labels", "bands"):
        assert f"{what}: 1 of 6 pairs" in shown
    assert "3.tif has 40x44 pixels before and 40x45 after" in shown
    assert "5.tif has 5 bands before and 3 after" in shown
    assert "are refused in training and prediction" in shown
    (root / "masks" / "4.tif").unlink()
    assert main(args) == 2
    assert "files do not match by name" in capsys.readouterr().err


def test_labels_of_another_kind_than_the_networks_are_named(tmp_path, capsys):
    net = vimamba.create_change_detector(
        "mamba_bda_tiny", num_classes=5, depths=(1, 1, 1), dims=(16, 24, 32), decoder_dim=16
    )
    folder = vimamba.save_pretrained(net, tmp_path / "net")
    root = write_pairs(tmp_path / "pairs", 1)
    assert main(["doctor", str(folder), "--data", str(root)]) == 2
    assert "has binary labels, mamba_bda_tiny expects damage labels" in capsys.readouterr().err


@pytest.mark.parametrize("make", [False, True], ids=["absent", "no image"])
def test_unusable_data_is_refused(make, tmp_path, capsys):
    file = tmp_path / "photo.png"
    if make:
        file.write_text("no image")
    assert main(["doctor", "test_vim", "--data", str(file)]) == 2
    assert str(file) in capsys.readouterr().err
