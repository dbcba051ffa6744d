"""The change task: outputs, losses, windows, and the commands from fit to predict."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vimamba
from tests.pairs import write_pairs
from vimamba.cli import main
from vimamba.data.paired.layouts import SECOND, XBD
from vimamba.labels import IGNORE
from vimamba.tasks import Change, TaskError
from vimamba.tasks.change.channels import OutputChannels, join_logits
from vimamba.tasks.change.loss import ChangeLoss, ChangeObjective
from vimamba.tasks.segmentation.loss import MaskObjective, lovasz_loss

PLAIN = MaskObjective(ce=1, dice=0)
SMALL = {"dims": 8, "depths": [1, 1, 1, 1], "head_channels": 16}


def draw(logits, kind, classes):
    outputs = OutputChannels(kind, classes)
    return outputs, outputs.part(logits)


def test_both_dates_have_changed_or_neither_has():
    logits = torch.randn(2, 2 + 5 + 5, 6, 7, generator=torch.Generator().manual_seed(0))
    outputs, parts = draw(logits, "semantic", 5)
    before, after = (m.argmax(1) for m in outputs.decide(outputs.probabilities(logits)))
    changed = parts["change"].argmax(1) == 1
    assert torch.equal(before > 0, changed)
    assert torch.equal(after > 0, changed)
    assert torch.equal(before[changed], parts["before"][:, 1:].argmax(1)[changed] + 1)


def test_damage_is_on_buildings_and_nowhere_else():
    logits = torch.randn(1, 2 + 5, 6, 7, generator=torch.Generator().manual_seed(0))
    outputs, parts = draw(logits, "damage", 5)
    (damage,) = (m.argmax(1) for m in outputs.decide(outputs.probabilities(logits)))
    assert torch.equal(damage > 0, parts["building"].argmax(1) == 1)


def test_the_loss_of_semantic_change_is_the_published_sum():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2 + 4 + 4, 5, 6, generator=generator)
    truth = torch.randint(0, 4, (2, 3, 5, 6), generator=generator)
    truth[:, 0] = (truth[:, 1] > 0).long()
    truth[:, 1:, 0] = truth[:, :1, 0] = IGNORE
    parts = OutputChannels("semantic", 4).part(logits)
    objective = ChangeObjective(MaskObjective(ce=1, dice=0, lovasz=0.75))
    found = ChangeLoss(objective, 4)(parts, truth)
    known = truth[:, 0] != IGNORE
    change = F.cross_entropy(parts["change"], truth[:, 0], ignore_index=IGNORE)
    probability = parts["change"].softmax(1)[:, 1:]
    wanted = change + 0.75 * lovasz_loss(probability, truth[:, 0].clamp(max=1), known)
    for place, name in enumerate(("before", "after"), 1):
        target = truth[:, place].masked_fill(truth[:, place] == 0, IGNORE)
        there = target != IGNORE
        wanted += 0.5 * F.cross_entropy(parts[name], target, ignore_index=IGNORE)
        index = target.masked_fill(~there, 0)
        wanted += 0.375 * lovasz_loss(parts[name].softmax(1), index, there)
    same = (truth[:, :1] == 0).float()
    soft = [parts[name].softmax(1) * same for name in ("before", "after")]
    wanted += 0.25 * F.mse_loss(*soft)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_a_network_for_another_kind_of_change_is_rejected_by_name():
    with pytest.raises(TaskError, match=r"predicts binary change, the labels are semantic; choose"):
        Change("test_vmamba", kind="semantic", num_classes=4)
    with pytest.raises(TaskError, match="num_classes=3 does not fit kind='binary'"):
        Change("test_vmamba", num_classes=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("change")
    root = write_pairs(folder / "pairs")
    args = ["--task", "change", "--data", str(root), "--model", "test_vmamba", "--epochs", "4"]
    args += ["--img-size", "32", "--lr", "5e-3", "--batch-size", "4", "--workers", "0"]
    args += ["--model.head", "fpn", "--data.augmentation", "none"]
    assert main(["fit", *args, "--out", str(folder / "run")]) == 0
    return folder


def test_a_run_is_scored_predicts_and_exports(run, capsys):
    files = {path.name for path in (run / "run").iterdir()}
    assert {"data.png", "samples.png", "curves.png", "confusion_matrix.png", "export"} <= files
    assert main(["test", str(run / "run")]) == 0
    shown = capsys.readouterr().out
    assert "F1 of change" in shown
    scores = json.loads((run / "run" / "metrics.json").read_text())["test"]
    assert {"f1", "iou", "precision", "recall", "accuracy", "kappa"} <= scores.keys()
    net = vimamba.load_change_detector(run / "run" / "export")
    assert net.num_classes == 1


def test_prediction_pairs_by_name_and_goes_on(run, capsys):
    before, after, out = run / "pairs" / "A", run / "pairs" / "B", run / "maps"
    args = ["predict", str(run / "run"), str(before), str(after), "--out", str(out)]
    assert main(args) == 0
    assert len(list(out.glob("*.png"))) == len(list((out / "overlays").glob("*.png"))) == 10
    found = np.asarray(Image.open(out / "0.png"))
    assert found.shape == (32, 32)
    assert set(np.unique(found)) <= {0, 1}
    stamp = (out / "1.png").stat().st_mtime_ns
    (out / "0.png").unlink()
    assert main(args) == 0
    assert (out / "0.png").is_file()
    assert (out / "1.png").stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert main(["predict", str(run / "run"), str(before), "--out", str(out)]) == 2
    assert "two images or folders, BEFORE AFTER; got 1" in capsys.readouterr().err


def test_prediction_is_scored_against_given_labels(run, capsys):
    pairs, out = run / "pairs", run / "scored"
    args = ["predict", str(run / "run"), str(pairs / "A"), str(pairs / "B"), "--no-overlays"]
    assert main([*args, "--out", str(out), "--masks", str(pairs / "label")]) == 0
    rows = {row["pair"]: row for row in csv.DictReader((out / "pairs.csv").open())}
    counts = np.zeros((2, 2), dtype=int)
    for number in range(10):
        found = np.asarray(Image.open(out / f"{number}.png")) > 0
        truth = np.asarray(Image.open(pairs / "label" / f"{number}.png")) > 0
        hit = (found & truth).sum()
        assert float(rows[str(number)]["iou"]) == pytest.approx(hit / (found | truth).sum())
        counts += [[(~found & ~truth).sum(), (found & ~truth).sum()], [(~found & truth).sum(), hit]]
    shown = capsys.readouterr().out
    f1 = 2 * counts[1, 1] / (counts[1].sum() + counts[:, 1].sum())
    assert re.search(rf"F1 of change +{f1:.4f}", shown)
    test = json.loads((run / "run" / "metrics.json").read_text())["test"]
    assert f"its test images F1 of change {test['f1']:.4f}" in shown
    assert [row["split"] for row in rows.values()].count("test") == test["images"]
    for masks, message in (
        (str(run / "nowhere"), "nowhere is not a folder"),
        (f"[{pairs / 'A'}, {pairs / 'B'}]", "a run of binary change takes one folder"),
    ):
        assert main([*args, "--out", str(run / "no"), "--masks", masks]) == 2
        assert message in capsys.readouterr().err
    (run / "few").mkdir()
    shutil.copy(pairs / "label" / "3.png", run / "few")
    assert main([*args, "--out", str(run / "no"), "--masks", str(run / "few")]) == 2
    assert "few has no labels for 0, 1, 2 and 6 more" in capsys.readouterr().err


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path):
    root = write_pairs(tmp_path / "pairs", 6)
    args = ["--task", "change", "--data", str(root), "--model", "test_vmamba", "--img-size", "32"]
    args += ["--batch-size", "2", "--workers", "0", "--model.head", "fpn"]
    args += ["--model.optim.schedule", "constant", "--model.optim.warmup_epochs", "0"]
    assert main(["fit", *args, "--epochs", "2", "--out", str(tmp_path / "whole")]) == 0
    assert main(["fit", *args, "--epochs", "1", "--out", str(tmp_path / "halves")]) == 0
    assert main(["fit", "--resume", str(tmp_path / "halves"), "--epochs", "2"]) == 0
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "halves")
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_windows_of_two_dates_blend_to_what_the_whole_pair_says():
    torch.manual_seed(0)
    task = Change("test_vmamba", head="fpn", img_size=32).eval()
    pair = torch.randn(2, 3, 32, 32)
    whole = task.predict_step([pair], 0)[0][0]
    assert whole.shape == (32, 32)
    large = torch.randn(2, 3, 50, 41)
    (found,) = task.predict_step([large], 0)[0]
    assert found.shape == (50, 41)
    with torch.no_grad():
        expected = join_logits(task.net(*pair[:, None]))
    assert torch.equal(whole, (expected[0, 0] > 0).byte())


LAYOUTS = {
    "semantic": ("T1/{}.png", "T2/{}.png", "GT_T1/{}.png", "GT_T2/{}.png"),
    "damage": ("images/{}_pre_disaster.png", "images/{}_post_disaster.png",
               "targets/{}_post_disaster_target.png"),
}  # fmt: skip
PRESETS = {"semantic": "second", "damage": "xbd"}
NAMES = {"semantic": list(SECOND), "damage": XBD}
TINY = ["--model.model_kwargs", "{depths: [1, 1, 1], dims: [8, 16, 24], decoder_dim: 8}"]


def write_kind(root, kind, count, side):
    """A square of another class in every pair, brighter in the second date."""
    rng = np.random.default_rng(0)
    for i in range(count):
        label = np.zeros((side, side), dtype=np.uint8)
        label[side // 8 : side // 2, side // 8 : side // 2] = 1 + i % (len(NAMES[kind]) - 1)
        for place, form in enumerate(LAYOUTS[kind]):
            path = root / form.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 255, (side, side, 3)) // 2 + 20 * label[..., None] * (place % 2)
            Image.fromarray((label if place > 1 else image).astype(np.uint8)).save(path)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "letters"), [("semantic", "scd"), ("damage", "bda")])
def test_semantic_change_and_damage_from_fit_to_predict(tmp_path, kind, letters, whole):
    side, run = 64 if whole else 32, tmp_path / "run"
    write_kind(tmp_path / kind, kind, 6, side)
    args = ["--task", "change", "--data", str(tmp_path / kind), "--data.layout", PRESETS[kind]]
    args += ["--model", f"mamba_{letters}_tiny", "--img-size", str(side), "--epochs", "1"]
    args += ["--batch-size", "2", "--out", str(run), "--workers", "0", *([] if whole else TINY)]
    args += ["--masks", "[GT_T1, GT_T2]"] if kind == "semantic" else []
    assert main(["fit", *args]) == 0
    wanted = {"semantic": {"sek", "fscd", "miou"}, "damage": {"f1_building", "f1_damage"}}[kind]
    metrics = run / "metrics.json"
    trained = json.loads(metrics.read_text())["test"]
    assert {*wanted, "score"} <= trained.keys()
    assert [row["class"] for row in trained["per_class"]] == NAMES[kind]
    assert main(["test", str(run)]) == 0
    assert json.loads(metrics.read_text())["test"]["confusion"] == trained["confusion"]
    dates = [str(tmp_path / kind / form.format(0)) for form in LAYOUTS[kind][:2]]
    folders = [str((tmp_path / kind / form).parent) for form in LAYOUTS[kind][2:]]
    masks = folders[0] if kind == "damage" else f"[{', '.join(folders)}]"
    command = ["predict", str(run), *dates, "--out", str(tmp_path / "maps"), "--masks", masks]
    assert main(command) == 0
    (row,) = csv.DictReader((tmp_path / "maps" / "pairs.csv").open())
    assert {*wanted, "score"} - {"miou"} <= row.keys()
    maps = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "maps").glob("0*.png"))]
    assert [found.shape for found in maps] == [(side, side)] * (2 if kind == "semantic" else 1)
    assert all(found.max() < len(NAMES[kind]) for found in maps)
    assert kind == "damage" or np.array_equal(maps[0] == 0, maps[1] == 0)
    assert vimamba.load_change_detector(run / "export").kind == kind
