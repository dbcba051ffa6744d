"""Non-square images, from `fit` to the outputs."""

import json
from argparse import ArgumentParser

import numpy as np
import pytest
from PIL import Image

from vimamba.benchmark.models import make_run
from vimamba.cli import main
from vimamba.cli.networks import add_arguments, open_network
from vimamba.cli.runs import read_config
from vimamba.sizes import read_size

TINY = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--trainer.accelerator", "cpu"]


def test_a_classifier_of_oblong_images(folder, tmp_path):
    run = tmp_path / "run"
    args = ["--data", str(folder), "--model", "test_vit", "--img-size", "32x48", "--out", str(run)]
    # quarter turns come before the crop
    args += ["--data.augmentation.rotate90", "1", "--limit", "8"]
    assert main(["fit", *args, *TINY]) == 0
    assert read_config(run)["data"]["init_args"]["img_size"] == [32, 48]
    assert main(["test", str(run)]) == 0
    assert main(["predict", str(run), str(folder / "fine" / "0.png")]) == 0
    config = json.loads((run / "export" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 48]
    assert config["preprocessing"]["img_size"] == [32, 48]
    assert main(["fit", "--resume", str(run), "--epochs", "2"]) == 0
    for words in ([str(run)], [str(run / "export")], ["test_vim", "--img-size", "32x48"]):
        parser = ArgumentParser()
        add_arguments(parser)
        assert open_network(parser.parse_args(words)).image_size == (3, 32, 48)


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "vm_unet", "--data.fit", "window", "--data.augmentation", "aerial"],
        ["--model", "test_vit", "--model.head", "fpn", "--data.augmentation", "microscopy"],
    ],
)
def test_a_segmenter_of_oblong_images(options, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(8):
        mask = np.zeros((50, 70), dtype=np.uint8)
        mask[10:30, 5 * number % 40 :][:, :20] = 1
        pixels = (rng.integers(0, 90, (50, 70, 3)) + mask[..., None] * 99).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{number}.png")
    run = tmp_path / "run"
    args = ["--task", "segmentation", "--data", str(tmp_path / "data"), "--out", str(run)]
    if "vm_unet" in options:
        small = "{depths: [1, 1], decoder_depths: [1, 1], dims: [8, 16]}"
        options = [*options, "--model.model_kwargs", small]
    assert main(["fit", *args, *options, "--img-size", "32x64", *TINY]) == 0
    assert "32x64" in capsys.readouterr().out
    assert main(["test", str(run)]) == 0
    assert main(["predict", str(run), str(tmp_path / "data" / "images" / "0.png")]) == 0
    assert Image.open(run / "predictions" / "0.png").size == (70, 50)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("96x", "img_size='96x' must be a whole number or HEIGHTxWIDTH, such as 224 or 96x160"),
        ("0", "img_size=0 must be at least 1"),
        ("32x0", "img_size='32x0' must be at least 1"),
        ("8x32x48", "img_size='8x32x48' has 3 sides"),
        ("[8, 32, 48]", "img_size=[8, 32, 48] has 3 sides"),
        ("1.5", "img_size='1.5' must be a whole number"),
    ],
)
def test_sizes_that_cannot_be(size, message, folder, capsys):
    assert main(["fit", "--data", str(folder), "--model", "test_vim", "--img-size", size]) == 2
    assert message in capsys.readouterr().err


def test_one_form_of_every_size():
    assert read_size("96x160") == read_size([96, 160]) == read_size((96, 160)) == (96, 160)
    assert read_size("32x32") == read_size(32) == read_size("32") == 32
    assert read_size("8x32x48", 3) == (8, 32, 48)


def test_models_are_timed_at_oblong_sizes(capsys):
    assert make_run("test_vit", "32x48", 1, False)().shape == (1, 1000)
    assert main(["benchmark", "models", "test_vit", "--sizes", "32x"]) == 2
    assert "--sizes 32x must be" in capsys.readouterr().err
