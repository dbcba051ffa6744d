"""A small data set, a recipe that uses every source of randomness, and a finished run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vimamba.cli import main

# all randomness is enabled: augmentation, drop path, mixing; and the average of the weights
RECIPE = {
    "seed_everything": 3,
    "model": {
        "class_path": "vimamba.tasks.Classification",
        "init_args": {
            "model": "test_vit",
            "model_kwargs": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
            "drop_path_rate": 0.2,
            "optim": {"lr": 0.003, "warmup_epochs": 1, "ema": 0.9},
            "objective": {"mixup": 0.2, "cutmix": 1.0},
        },
    },
    "data": {
        "class_path": "vimamba.data.ImageFolder",
        "init_args": {"img_size": 16, "batch_size": 8, "workers": 0},
    },
    "trainer": {"max_epochs": 4, "accelerator": "cpu", "devices": 1},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Three classes of 16 noisy stripes each."""
    root = tmp_path_factory.mktemp("data") / "stripes"
    rng = np.random.default_rng(0)
    for name, step in (("broad", 8), ("fine", 2), ("middle", 4)):
        (root / name).mkdir(parents=True)
        for number in range(16):
            stripes = (np.arange(24) // step % 2 * 200)[None, :, None]
            pixels = (stripes + rng.integers(0, 50, (20, 24, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, folder) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "stripes.yaml"
    content = json.loads(json.dumps(RECIPE))
    content["data"]["init_args"]["root"] = str(folder)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory, recipe) -> Path:
    """A finished run of four epochs."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert main(["fit", "-c", str(recipe), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def start():
    """Start the command in a separate process, with its output in a pipe."""

    def start(*args) -> subprocess.Popen[str]:
        code = "import sys; from vimamba.cli import main; sys.exit(main())"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def spoiled(monkeypatch):
    """Make the networks of a task overflow for images that are bright in the middle."""

    def spoil(task, limit):
        forward = task.forward

        def overflow(self, image):
            logits = forward(self, image)
            middle = image[..., image.shape[-2] // 2, image.shape[-1] // 2].mean(1)
            return torch.where(
                (middle > limit).view(-1, *[1] * (logits.ndim - 1)), torch.inf, logits
            )

        monkeypatch.setattr(task, "forward", overflow)

    return spoil
