"""An accepted option has an effect; one without an effect is rejected by name.

The tables together hold every option, so a new one must be added to one of them.
"""

import csv
import json
import shutil
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vimamba.cli import main
from vimamba.cli.evaluation import OF_TRAINING, check_options
from vimamba.cli.explaining import list_arguments, typed_options
from vimamba.cli.metric_names import metric_names
from vimamba.cli.options import translate
from vimamba.cli.recipe import build
from vimamba.cli.settings import BESIDE
from vimamba.data import ImageFolder, MaskFolder
from vimamba.data.augmentation import Augmentation
from vimamba.data.masked.augmentation import MaskedAugmentation
from vimamba.data.splits import write_split
from vimamba.errors import UsageError
from vimamba.tasks import Classification, MaskObjective, Objective, Optimization, Segmentation, Task

# decided by another option: --seed, or by the data
LINKED_OPTIONS = {"model.seed", "data.seed", *(f"model.{name}" for name in Task.of_the_data)}

# option -> value, and where it is stored after building; None: under its own name
OPTIM = {
    "opt": "sgd", "lr": 0.3, "weight_decay": 0.4, "layer_decay": 0.5, "schedule": "poly",
    "power": 0.9, "warmup_epochs": 2.0, "warmup_lr": 0.1, "min_lr": 0.2, "ema": 0.5,
    "freeze_epochs": 1, "minutes": 45.0,
}  # fmt: skip
DATA = {
    "batch_size": 3, "workers": 1, "limit": 5,
    "val_fraction": 0.2, "test_fraction": 0.3,
    "img_size": 32, "in_chans": 1, "mean": [0.1], "std": [0.2], "interpolation": "nearest",
    "bands": [0], "group_pattern": "(.*)", "fold": 1, "folds": 3, "fold_as": "test",
    "intensity.window": [1.0, 2.0], "intensity.zscore": True,
}  # fmt: skip
AUGMENTATION = {"aspect": 1.5}
FOUND = {
    "data.val_fraction": lambda cli: cli.datamodule.fractions["val"],
    "data.test_fraction": lambda cli: cli.datamodule.fractions["test"],
    "data.split_csv": lambda cli: str(cli.datamodule.split_csv),
    "data.interpolation": lambda cli: cli.config.data.init_args.interpolation,
    "model.model_kwargs": lambda cli: dict(cli.model.hparams["model_kwargs"]),
    "model.drop_path_rate": lambda cli: cli.model.hparams["drop_path_rate"],
    "model.head": lambda cli: cli.model.hparams["head"],
    "model.aux": lambda cli: cli.model.hparams["aux"],
    "model.grad_checkpointing": lambda cli: cli.model.hparams["grad_checkpointing"],
    "model.compile": lambda cli: cli.model.net._compiled_call_impl is not None,
    "data.fit": lambda cli: cli.datamodule.preprocessing.fit,
    "data.scale_to": lambda cli: cli.datamodule.preprocessing.scale_to,
    "data.bands": lambda cli: cli.datamodule.preprocessing.bands,
    "data.intensity.window": lambda cli: cli.datamodule.preprocessing.intensity.window,
    "data.intensity.zscore": lambda cli: cli.datamodule.preprocessing.intensity.zscore,
    "data.images": lambda cli: cli.datamodule.image_folders[0],
    "data.masks": lambda cli: cli.datamodule.mask_folders[0],
}


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("masks")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for number in range(8):
        mask = np.zeros((32, 32), np.uint8)
        mask[4:20, 4 : 12 + number] = 1
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
        Image.fromarray(mask * 100).save(root / "images" / f"{number}.png")
    return root


def values_of(kind, prefix, given):
    """A non-default value for every setting of a dataclass."""
    values = dict(given)
    for name, field in kind.__dataclass_fields__.items():
        default = field.default
        if name not in values and isinstance(default, float):
            values[name] = default + 0.125
        elif name not in values and isinstance(default, bool):
            values[name] = not default
    return {f"{prefix}.{name}": value for name, value in values.items()}


def check_all(task, data, root, model, further, tmp_path):
    """Pass every option at once, and check each in the built objects."""
    found = data(str(root))
    write_split(tmp_path / "split.csv", found.catalogue.splits, found.class_names)
    table = {f"data.{name}": value for name, value in DATA.items()}
    table |= {"data.split_csv": str(tmp_path / "split.csv")}
    table |= values_of(Optimization, "model.optim", OPTIM) | further
    known = {o for o in typed_options(task, data) if not o.startswith("trainer.")}
    # each setting of a group separately
    groups = {option for option in known if any(o.startswith(f"{option}.") for o in known)}
    # test models have no published weights; the last three exclude others
    given = {"data.root", "model.model", "model.pretrained"}
    given |= {"data.labels.colors", "data.intensity.percentiles", "data.intensity.ranges"}
    assert known - groups - LINKED_OPTIONS - set(table) - given == set()
    options = [f"--model.class_path={task.__module__.rsplit('.', 1)[0]}.{task.__name__}"]
    options += ["--data", str(root), "--model", model]
    for option, value in table.items():
        text = json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
        options.append(f"--{option}={text}")
    cli = build(translate(options), Path("nowhere"))
    objects = {"data": "datamodule", "model": "model"}
    for option, value in table.items():
        part, _, rest = option.partition(".")
        look = FOUND.get(option, attrgetter(f"{objects[part]}.{rest}"))
        found = look(cli)
        found = list(found) if isinstance(found, tuple) else found
        assert found == value, option


NETWORK = {
    "model.drop_path_rate": 0.125,
    "model.grad_checkpointing": True,
    "model.compile": True,
}


def test_every_option_of_classification_reaches_what_it_sets(folder, tmp_path):
    kwargs = {"model.model_kwargs": {"patch_size": 8, "depth": 1}}
    mixing = {"class_weights": "balanced", "mix_prob": 0.75}
    names = sorted(path.name for path in folder.iterdir())
    further = {"data.crop_pct": 0.75, "data.classes": names[::-1], **NETWORK, **kwargs}
    further |= values_of(Objective, "model.objective", mixing)
    further |= values_of(Augmentation, "data.augmentation", AUGMENTATION)
    check_all(Classification, ImageFolder, folder, "test_vit", further, tmp_path)


def test_every_option_of_segmentation_reaches_what_it_sets(masks, tmp_path):
    further = {
        **NETWORK,
        "model.model_kwargs": {"mlp_ratio": 2.0},
        "model.head": "fpn",
        "model.aux": True,
        "model.score": "miou",
        "model.case_scores": False,
        "model.tolerance": 3.0,
        "model.overlap": 0.25,
        "model.left_out": ["nothing"],
        "model.border": 1,
        "data.fit": "window",
        "data.scale_to": 40,
        "data.align": True,
        "data.images": "images",
        "data.masks": "masks",
        "data.mask_suffix": "",
        "data.labels.classes": ["nothing", "square"],
        "data.labels.values": [0, 1],
        "data.labels.ignore": 7,
        "data.labels.background": False,
    }
    weights = {"class_weights": [1.0, 2.0], "aux_weights": [0.5], "ce": 2.0, "dice": 3.0}
    further |= values_of(MaskObjective, "model.objective", weights)
    further |= values_of(
        MaskedAugmentation, "data.augmentation", AUGMENTATION | {"scale": [0.5, 1.5]}
    )
    check_all(Segmentation, MaskFolder, masks, "test_vmamba", further, tmp_path)


def test_options_that_the_scores_do_not_follow_are_refused_by_test():
    known = typed_options(Classification, ImageFolder) + typed_options(Segmentation, MaskFolder)
    for option in known:
        acts = not any(f"--{option}" == o or f"--{option}".startswith(f"{o}.") for o in OF_TRAINING)
        if acts and option != "trainer.limit_val_batches":
            check_options("test", [f"--{option}=1"])
            continue
        with pytest.raises(UsageError, match=f"--{option} does not affect the scores"):
            check_options("test", [f"--{option}", "1"])
    training = ("--lr", "--epochs", "--model", "--pretrained", "--task", "--patience", "--lr-find")
    for option in (*training, "--logger"):
        with pytest.raises(UsageError, match=f"{option} does not affect"):
            check_options("validate", [option, "1"])
    # rejected options exist
    names = {f"--{option}" for option in (*known, *BESIDE)}
    assert set(OF_TRAINING) - names == {"--task", "--model.class_path"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.model_kwargs.depth", "1"], "model_kwargs="),
        (["--model.optim.opt", "sgd"], "optim.opt='sgd'"),
        (["--model.optim.layer_decay", "0.5"], "optim.layer_decay=0.5"),
        (["--seed", "9"], "--seed 9: the run was begun with 3"),
        (["--data.val_fraction", "0.4"], "--data.val_fraction 0.4: the run keeps"),
        (["--limit", "6"], "--data.limit 6: the run keeps"),
        (["--epochs", "2"], "--epochs 2: the run has already done 4 epochs"),
        (["--trainer.max_steps", "3"], "--trainer.max_steps 3: the run has already done 16 steps"),
        (["--out", "elsewhere"], "--out elsewhere: a run continues in its own folder"),
    ],
)
def test_what_a_resumed_run_cannot_follow_is_refused(options, message, run, capsys):
    before = (run / "config.yaml").read_bytes()
    assert main(["fit", "--resume", str(run), *options]) == 2
    assert message in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_a_resumed_run_follows_the_options_it_is_given(run, folder, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    shutil.copytree(folder, tmp_path / "moved")
    with (out / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:  # the test images are for validation, and vice versa
        row["split"] = {"val": "test", "test": "val"}.get(row["split"], "train")
    with (tmp_path / "other.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    options = ["--epochs", "6", "--lr", "0.005", "--model.optim.schedule", "poly"]
    options += ["--data", str(tmp_path / "moved"), "--data.split_csv", str(tmp_path / "other.csv")]
    assert main(["fit", "--resume", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert "4 steps an epoch, 24 in all; warm-up 1 epoch (steps: 4); then the rate" in said
    assert "16 steps of 16 planned before are done" in said
    assert "the search for the best epoch starts again" in said
    with (out / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[4:] == pytest.approx([1e-6 + 0.004999 * (1 - step / 24) for step in (20, 24)])
    assert (out / "split.csv").read_text() == (tmp_path / "other.csv").read_text()
    best = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] >= 4
    assert yaml.safe_load((out / "config.yaml").read_text())["trainer"]["max_epochs"] == 6


def test_other_data_are_scored_by_the_division_that_is_named(run, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    moved = ["--data", str(tmp_path / "moved")]
    own = ["--data.split_csv", str(run / "split.csv")]
    images = {}
    for name, options in (("all", moved), ("split", [*moved, *own]), ("own", [])):
        results = tmp_path / f"{name}.json"
        assert main(["test", str(run), *options, "--results", str(results)]) == 0
        images[name] = json.loads(results.read_text())["test"]["images"]
    assert images["all"] == 48
    assert images["split"] == images["own"] < 12


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict RUN a.png --overlap 0.5", "--overlap is for segmentation, change and volumes"),
        ("predict RUN a.png --masks truth", "--masks is for segmentation, change and volumes runs"),
        (
            "predict RUN a.png --no-overlays",
            "--no-overlays is for segmentation, change and volumes",
        ),
        ("predict RUN a.png --workers -1", "--workers -1 must be at least 0"),
        ("predict RUN a.png --batch-size 0", "--batch-size 0 must be at least 1"),
        ("export test_vim --to hub --repo a/b --out c", "--out is for --to onnx"),
        ("export test_vim --to onnx --private", "--private is for --to hub"),
        ("export test_vim --to safetensors --fixed-size", "--fixed-size is for --to onnx"),
        ("export test_vim --to onnx --ckpt last", "--ckpt is for a run; test_vim is a model"),
        ("doctor RUN --checkpoint a.pth", "--checkpoint is for a model"),
        ("doctor RUN --model-kwargs a=1", "--model-kwargs is for a model"),
        ("doctor RUN --rows 3 --all", "not allowed with argument"),
        ("doctor RUN --rows 0", "--rows 0 must be at least 1"),
        ("benchmark ops vim_tiny_patch16_224", "names are for models"),
        ("benchmark ops --train", "--train is for models"),
        ("benchmark ops --sizes 64", "--sizes is for models"),
        ("benchmark models --backward", "--backward is for ops"),
        ("benchmark models --cases Vim", "--cases is for ops"),
        ("benchmark models --sizes 224 0", "--sizes 0 must be at least 1"),
        ("benchmark ops --threads 0", "--threads 0 must be at least 1"),
        ("benchmark ops --seconds nan", "--seconds nan must be a positive number"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(command, message, run, capsys):
    assert main(command.replace("RUN", str(run)).split()) == 2
    assert message in capsys.readouterr().err


def read_rows(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_rows_and_the_best_epoch_are_of_what_was_validated(recipe, tmp_path):
    out = tmp_path / "run"
    options = ["--epochs", "3", "--trainer.check_val_every_n_epoch", "2", "--lr", "0.01"]
    assert main(["fit", "-c", str(recipe), "--out", str(out), *options]) == 0
    assert [bool(row["val/loss"]) for row in read_rows(out)] == [False, True, False]
    assert torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 1


def test_a_training_by_steps_ends_within_an_epoch(recipe, tmp_path):
    out = tmp_path / "run"
    options = ["--trainer.max_epochs", "null", "--trainer.max_steps", "7"]
    options += ["--trainer.val_check_interval", "0.5"]
    assert main(["fit", "-c", str(recipe), "--out", str(out), *options]) == 0
    rows = read_rows(out)
    assert [row["step"] for row in rows] == ["2", "4", "6", "7"]
    assert [row["epoch"] for row in rows] == ["0.5", "1", "1.5", "1.75"]
    assert [bool(row["val/loss"]) for row in rows] == [True, True, True, False]
    assert [bool(row["train/loss"]) for row in rows] == [False, True, False, True]
    assert float(rows[-1]["lr"]) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    "options", [["--trainer.limit_val_batches", "0"], ["--data.val_fraction", "0"]]
)
def test_a_run_without_validation_keeps_its_last_epoch(options, recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["fit", "-c", str(recipe), "--out", str(out), "--epochs", "1", *options]) == 0
    assert "the last epoch counts as the best" in capsys.readouterr().out
    assert (out / "export" / "model.safetensors").exists()
    assert "val/loss" not in read_rows(out)[0]


def test_averaged_weights_are_scored_and_exported(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    callback = ["StochasticWeightAveraging", "swa_lrs=0.001", "swa_epoch_start=1"]
    options = [f"--trainer.callbacks+={callback[0]}"]
    options += [f"--trainer.callbacks.{argument}" for argument in callback[1:]]
    assert main(["fit", "-c", str(recipe), "--out", str(out), "--epochs", "2", *options]) == 0
    assert "the averaged weights are" in capsys.readouterr().out


def test_help_and_the_page_name_the_metrics(capsys, folder):
    main(["fit", "--help"])
    text = capsys.readouterr().out
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    cli = build(translate(["--data", str(folder), "--model", "test_vit"]), Path("nowhere"))
    names = metric_names(cli)
    assert names == [
        "train/loss", "val/loss", "val/accuracy", "val/balanced_accuracy", "val/macro_f1",
        "val/auroc", "val/ece",
    ]  # fmt: skip
    for name in (*names, "val/top5", "val/exact_match", "val/dice", "val/miou"):
        assert name in text
        assert f"`{name}`" in page


def test_the_metrics_that_are_named_are_those_that_are_logged(run):
    with (run / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    logged = {name for name in columns if "/" in name}
    cli = build(["--config", str(run / "config.yaml")], run)
    assert logged == set(metric_names(cli))


def test_arguments_are_listed_through_the_bases():
    names = list(list_arguments(ImageFolder))
    assert {"root", "crop_pct", "batch_size", "augmentation.hflip"} <= set(names)
    assert "kwargs" not in names
