"""Third-party scripts see the models; timm's own scripts do no more than this one."""

import subprocess
import sys

import pytest

from vimamba import run

PROBE = """\
import sys
import timm
print(sys.argv, __name__, sys.path[0], timm.is_model("test_vim"))
import neighbor
sys.exit(3)
"""

# timm's train.py and validate.py, shortened: the same parts in the same order
TRAINER = """\
import argparse
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import create_model, load_checkpoint, safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV3, accuracy

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir")
parser.add_argument("--model")
parser.add_argument("--num-classes", type=int)
parser.add_argument("--output")
args = parser.parse_args()

model = create_model(args.model, num_classes=args.num_classes, drop_path_rate=0.1)
model.set_grad_checkpointing()
config = resolve_data_config({}, model=model)
optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
ema = ModelEmaV3(model, decay=0.9)
scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=1, updates_per_epoch=2)
saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=args.output)


def loader(split, training):
    dataset = create_dataset("", root=args.data_dir, split=split, is_training=training)
    return create_loader(
        dataset, config["input_size"], 4, is_training=training, use_prefetcher=False,
        mean=config["mean"], std=config["std"], num_workers=0, device=torch.device("cpu"),
    )


criterion = LabelSmoothingCrossEntropy(0.1)
for step, (image, target) in enumerate(loader("train", True)):
    loss = criterion(model.train()(image), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update(model, step=step)
    scheduler.step_update(step + 1)
saver.save_checkpoint(0, metric=1.0)

fresh = create_model(args.model, num_classes=args.num_classes)
load_checkpoint(fresh, args.output + "/last.pth.tar", use_ema=True)
meter = AverageMeter()
with torch.no_grad():
    for image, target in loader("val", False):
        meter.update(accuracy(fresh.eval()(image), target)[0].item(), len(image))
print(f"{args.model}: loss {loss:.3f}, top-1 {meter.avg:.1f} on {meter.count} images")
"""


def start(*args, cwd):
    command = [sys.executable, "-m", "vimamba.run", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_a_script_runs_as_python_would_run_it_with_the_models_known(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "probe.py").write_text(PROBE)
    (tmp_path / "scripts" / "neighbor.py").touch()
    done = start("scripts/probe.py", "--model", "x", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    folder = tmp_path / "scripts"
    assert done.stdout.strip() == f"['scripts/probe.py', '--model', 'x'] __main__ {folder} True"


@pytest.mark.parametrize("name", ["test_vim"])
def test_a_script_as_timms_trains_saves_and_validates(name, tmp_path, monkeypatch):
    from PIL import Image

    for split in ("train", "val"):
        for label, color in (("dark", 40), ("light", 200)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (100, 90), (color + number,) * 3).save(folder / f"{number}.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "train.py").write_text(TRAINER)
    args = ["--data-dir", tmp_path / "data", "--model", name, "--num-classes", 2]
    done = start("train.py", *args, "--output", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: loss ")
    assert "on 8 images" in done.stdout
    assert (tmp_path / "out" / "last.pth.tar").exists()


@pytest.mark.parametrize(("args", "code"), [(["nowhere.py"], 2), ([], 2), (["--help"], 0)])
def test_errors_are_one_line(args, code, capsys):
    assert run.main(args) == code
    said = capsys.readouterr()
    assert "usage: python -m vimamba.run SCRIPT.py" in (said.out if code == 0 else said.err)
    assert ("there is no script nowhere.py" in said.err) == (args == ["nowhere.py"])
