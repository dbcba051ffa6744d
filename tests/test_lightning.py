"""Both packages of Lightning: `lightning.pytorch` and `pytorch_lightning`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning

from vimamba import lightning

ROOT = Path(__file__).parents[1]

# a third-party callback, a recipe for the other package, a resumed run
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from vimamba.cli import main
from vimamba.data import ImageFolder
from vimamba.tasks import Classification

for name in ("bright", "dark"):
    Path("images", name).mkdir(parents=True)
    for number in range(6):
        pixels = np.full((16, 16, 3), 200 * (name == "bright"), np.uint8)
        Image.fromarray(pixels).save(f"images/{name}/{number}.png")

class Count(Callback):
    batches = 0

    def on_train_batch_end(self, *args):
        self.batches += 1

data = ImageFolder("images", img_size=16, batch_size=4)
small = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2}
task = Classification("test_vit", num_classes=2, model_kwargs=small)
assert isinstance(data, LightningDataModule) and isinstance(task, LightningModule)
count = Count()
Trainer(max_steps=1, callbacks=[count], logger=False, enable_checkpointing=False).fit(task, data)
assert count.batches == 1

Path("recipe.yaml").write_text('''
model: {class_path: vimamba.tasks.Classification, init_args: {model: test_vit, model_kwargs:
  {patch_size: 8, depth: 1, embed_dim: 16, num_heads: 2}}}
data: {class_path: vimamba.data.ImageFolder, init_args: {root: images, img_size: 16, workers: 0}}
trainer:
  callbacks: [{class_path: pytorch_lightning.callbacks.EarlyStopping,
               init_args: {monitor: val/loss}}]
''')
assert main("fit -c recipe.yaml --epochs 1 --out run".split()) == 0
kept = Path("run/config.yaml").read_text()
assert "lightning.pytorch.callbacks.EarlyStopping" in kept
# as a run that was trained with the other package
Path("run/config.yaml").write_text(kept.replace("lightning.pytorch", "pytorch_lightning"))
assert main("fit --resume run --epochs 2".split()) == 0
assert "pytorch_lightning" not in sys.modules
"""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    """`lightning`, built like the published package: the same files with the name replaced."""
    source = Path(pytorch_lightning.__file__).parent
    root = tmp_path_factory.mktemp("site")
    for path in source.rglob("*"):
        target = root / "lightning" / "pytorch" / path.relative_to(source)
        if path.suffix == ".py" or path.name == "version.info":
            target.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8")
            target.write_text(text.replace("pytorch_lightning", "lightning.pytorch"))
    (root / "lightning" / "__init__.py").touch()
    return root


def test_everything_works_where_lightning_is_installed(mirror, tmp_path):
    places = [str(mirror), str(ROOT), str(ROOT / "kernels")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("imported", "installed", "chosen"),
    [
        ((), True, "lightning.pytorch"),
        ((), False, "pytorch_lightning"),
        (("pytorch_lightning",), True, "pytorch_lightning"),
        (("lightning.pytorch",), True, "lightning.pytorch"),
    ],
)
def test_what_is_imported_or_installed_decides(imported, installed, chosen, mirror, monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in imported:
        monkeypatch.setitem(sys.modules, name, pytorch_lightning)
    # a user's script with that name is not mistaken for it
    own = mirror.parent / f"own{installed}"
    own.mkdir(exist_ok=True)
    (own / "lightning.py").write_text("raise SystemExit")
    monkeypatch.setattr(sys, "path", [str(mirror if installed else own), *sys.path])
    assert lightning.choose_package() == chosen


def test_settings_name_the_package_in_use(monkeypatch):
    monkeypatch.setattr(lightning, "PACKAGE", "pytorch_lightning")
    given = {"strategy": [{"class_path": "lightning.pytorch.strategies.DDPStrategy"}], "devices": 2}
    named = {"strategy": [{"class_path": "pytorch_lightning.strategies.DDPStrategy"}], "devices": 2}
    assert lightning.name_in_use(given) == named == lightning.name_in_use(named)
    assert lightning.name_in_use("on lightning.pytorch.") == "on lightning.pytorch."
