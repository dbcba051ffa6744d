"""Early stopping, the search for a learning rate and the loggers of `vimamba fit`."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from vimamba.cli import loggers, main
from vimamba.data import ImageFolder
from vimamba.lightning import Trainer
from vimamba.lightning import loggers as of_lightning
from vimamba.tasks import Classification, Optimization, TaskError
from vimamba.tasks.rate_finder import HIGHEST, LOWEST, STEPS, RateRise, find_rate

# a rate that is too low to learn, so that no validation is better than the first
STILL = ["--lr", "1e-12", "--model.optim.warmup_lr", "0", "--model.optim.min_lr", "0"]
SMALL = {"patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2}


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(run):
    checkpoint = run / "checkpoints" / "last.ckpt"
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_patience_ends_a_training_and_a_resumed_run_waits_on(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    args = ["fit", "-c", str(recipe), "--out", str(out), "--epochs", "30", *STILL]
    assert main([*args, "--patience", "2"]) == 0
    assert "stopped: 2 validations in a row have not raised val/accuracy" in capsys.readouterr().out
    rows = read_rows(out / "metrics.csv")
    assert len(rows) == 3
    assert len({row["val/accuracy"] for row in rows}) == 1
    record = json.loads((out / "run.json").read_text())
    assert (record["stopped"], record["finished"]) == ("stopped early", True)
    assert (out / "export" / "model.safetensors").exists()
    # it continues for two more epochs with more patience, and not at all otherwise
    for options, epochs in (([], 3), (["--patience", "4"], 5)):
        assert main(["fit", "--resume", str(out), *options]) == 0
        assert len(read_rows(out / "metrics.csv")) == epochs


def test_a_score_that_rises_is_waited_for(run, recipe, tmp_path):
    out = tmp_path / "run"
    assert main(["fit", "-c", str(recipe), "--out", str(out), "--patience", "4"]) == 0
    assert len(read_rows(out / "metrics.csv")) == 4
    # patience changes nothing else
    same = weights(run)
    assert all(torch.equal(value, same[name]) for name, value in weights(out).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patience", "0"], "--patience 0 must be at least 1"),
        (["--patience", "3", "--data.val_fraction", "0"], "--patience 3 waits for val/accuracy"),
        (["--patience", "soon"], "--patience soon: expected a whole number"),
        (["--logger", "tensorbord"], "expected one of csv, tensorboard, wandb, mlflow"),
        (["--logger", "csv", "--trainer.logger", "false"], "--logger and --trainer.logger: give"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    options, message, recipe, tmp_path, capsys
):
    out = tmp_path / "run"
    assert main(["fit", "-c", str(recipe), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.draws
def test_a_found_rate_trains_as_one_that_is_given(recipe, tmp_path, capsys):
    found, given = tmp_path / "found", tmp_path / "given"
    args = ["fit", "-c", str(recipe), "--epochs", "2", "--out"]
    assert main([*args, str(found), "--lr-find"]) == 0
    settings = yaml.safe_load((found / "config.yaml").read_text())
    rate = settings["model"]["init_args"]["optim"]["lr"]
    assert LOWEST < rate < HIGHEST
    assert f"--lr {rate:g} is where the loss falls fastest" in capsys.readouterr().out
    assert main([*args, str(given), "--lr", str(rate)]) == 0
    one, other = weights(found), weights(given)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    curves = [read_rows(out / "metrics.csv") for out in (found, given)]
    for row in (*curves[0], *curves[1]):
        del row["seconds"]
    assert curves[0] == curves[1]
    tried = [float(row["lr"]) for row in read_rows(found / "lr_find.csv")]
    assert tried[0] == pytest.approx(LOWEST)
    assert rate == pytest.approx(min(tried, key=lambda one: abs(one - rate)), rel=1e-2)
    assert (found / "lr_find.png").stat().st_size > 5000
    # a resumed run keeps the rate and does not search
    assert main(["fit", "--resume", str(found), "--lr-find"]) == 2
    assert "--lr-find: a run that is resumed has its rate" in capsys.readouterr().err
    assert main(["fit", "--resume", str(found), "--epochs", "3"]) == 0


def test_a_search_gives_each_layer_its_share_and_leaves_the_task_alone(folder):
    shares = []

    class Watched(Classification):
        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)
            shares.append({(g["lr"], g["lr_scale"]) for g in optimizer.param_groups})

    data = ImageFolder(str(folder), img_size=16, batch_size=8)
    optim = Optimization(layer_decay=0.5, freeze_epochs=3)
    task = Watched("test_vit", num_classes=3, model_kwargs=SMALL, img_size=16, optim=optim)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    state = torch.get_rng_state()

    def make_trainer(**given):
        return Trainer(accelerator="cpu", **given)

    rise = find_rate(task, data, make_trainer)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert task.optim == optim
    assert len(rise.rates) <= STEPS
    for rate, groups in zip(rise.rates, shares, strict=False):
        assert len(groups) > 2
        for own, scale in groups:
            assert own == pytest.approx(rate * scale)


def test_the_suggestion_is_where_the_loss_falls_fastest():
    rise = RateRise()
    rise.rates = [10 ** (-7 + 7 * step / 99) for step in range(100)]
    # as a function of log(rate), 1 / (1 + rate / r) is steepest at r
    rise.losses = [1 / (1 + rate / 1e-3) for rate in rise.rates]
    assert rise.suggestion == pytest.approx(1e-3, rel=0.1)
    rise.losses = [1 + rate for rate in rise.rates]
    assert rise.suggestion is None


def test_loggers_hold_scores_and_settings(recipe, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    out = tmp_path / "run"
    args = ["fit", "-c", str(recipe), "--epochs", "1", "--out", str(out)]
    assert main([*args, "--logger", "csv", "tensorboard"]) == 0
    row = read_rows(out / "metrics.csv")[0]
    logged = read_rows(out / "csv" / "version_0" / "metrics.csv")
    scores = [line["val/accuracy"] for line in logged if line["val/accuracy"]]
    assert [float(score) for score in scores] == pytest.approx([float(row["val/accuracy"])])
    for folder in (out / "csv" / "version_0", out / "tensorboard"):
        params = yaml.safe_load((folder / "hparams.yaml").read_text())
        assert params["model.init_args.optim.lr"] == 0.003
        assert params["data.init_args.batch_size"] == 8
    events = event_accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert events.Scalars("val/accuracy")[0].value == pytest.approx(float(row["val/accuracy"]))
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert kept["logger"] == ["csv", "tensorboard"]
    # a resumed run continues to write them
    assert main(["fit", "--resume", str(out), "--epochs", "2"]) == 0
    assert (out / "csv" / "version_1" / "metrics.csv").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_package_is_named_with_what_brings_it(
    name, recipe, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    out = tmp_path / "run"
    assert main(["fit", "-c", str(recipe), "--out", str(out), "--logger", name]) == 2
    error = capsys.readouterr().err
    assert error == f"error: --logger {name}: its package is missing; run `pip install {name}`\n"
    assert not out.exists()


def test_runs_have_their_folders_name_elsewhere(recipe, tmp_path, monkeypatch):
    given = {}

    def stand_in(kind):
        def make(*args, **kwargs):
            given[kind] = (args, kwargs)
            return of_lightning.CSVLogger(tmp_path / kind)

        return make

    monkeypatch.setattr(of_lightning, "WandbLogger", stand_in("wandb"))
    monkeypatch.setattr(of_lightning, "MLFlowLogger", stand_in("mlflow"))
    monkeypatch.setattr(loggers, "find_spec", lambda package: package)
    monkeypatch.setenv("WANDB_PROJECT", "stripes")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "runs" / "first"
    args = ["fit", "-c", str(recipe), "--epochs", "1", "--limit", "9", "--out", str(out)]
    assert main([*args, "--logger", "wandb", "mlflow"]) == 0
    assert given["wandb"][1] == {"name": "first", "save_dir": Path(out), "project": "stripes"}
    store = {"tracking_uri": "sqlite:///mlflow.db"}
    assert given["mlflow"] == (("vimamba",), {"run_name": "first", **store})
    assert not (out / "tensorboard").exists()
    for kind in given:
        params = next((tmp_path / kind).rglob("hparams.yaml"))
        assert "model.init_args.optim.lr" in params.read_text()


def test_a_run_whose_first_step_fails_leaves_its_name_free(recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    args = ["fit", "-c", str(recipe), "--epochs", "1", "--limit", "9", "--out", str(out)]

    def fail(self, batch, batch_idx):
        raise TaskError("the first step fails")

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", fail)
        assert main(args) == 2
    assert "the first step fails" in capsys.readouterr().err
    assert main(args) == 0
    assert json.loads((out / "run.json").read_text())["finished"]
