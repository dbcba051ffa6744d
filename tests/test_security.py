"""Received files are data: manipulated run folders, exports and checkpoints run no code."""

import copy
import importlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import vimamba
from vimamba.checkpoints import CheckpointError, read_checkpoint
from vimamba.cli import main
from vimamba.cli.settings import PARTS
from vimamba.hub import load_folder
from vimamba.lightning import PACKAGE

TINY = ["--model.model_kwargs", "{patch_size: 8, depth: 1, embed_dim: 16, num_heads: 2}"]


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A run and its images, as received from somebody else."""
    root = tmp_path_factory.mktemp("sent")
    rng = np.random.default_rng(0)
    for number, name in enumerate("ab"):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 90 + 60 * number, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{i}.png")
    args = ["--data", str(root / "photos"), "--model", "test_vit", "--img-size", "16", *TINY]
    args += ["--epochs", "1", "--workers", "0", "--batch-size", "4"]
    assert main(["fit", *args, "--trainer.accelerator", "cpu", "--out", str(root / "run")]) == 0
    return root


@pytest.fixture
def folder(sent, tmp_path, monkeypatch):
    """A copy of the run, in a folder whose modules write a file when imported."""
    shutil.copytree(sent / "run", tmp_path / "run")
    code = f"open({str(tmp_path / 'CODE_RAN')!r}, 'w').close()\ndef m(*a, **k): return None\n"
    for name in ("evil.py", "hubconf.py", "sitecustomize.py"):
        (tmp_path / name).write_text(code)
        (tmp_path / "run" / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def commands(sent):
    return {
        "predict": ["predict", "run", str(sent / "photos" / "a"), "--out", "p.csv"],
        "test": ["test", "run"],
        "validate": ["validate", "run"],
        "doctor": ["doctor", "run"],
        "export": ["export", "run", "--to", "safetensors", "--out", "x"],
        "resume": ["fit", "--resume", "run"],
    }


def check_refused(args, capsys, *words):
    capsys.readouterr()
    code = main(args)
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1, error
    assert not Path("CODE_RAN").exists()
    for word in words:
        assert word in error


def change_settings(change):
    path = Path("run/config.yaml")
    settings = yaml.safe_load(path.read_text())
    change(settings)
    path.write_text(yaml.safe_dump(settings))


def change_checkpoints(change):
    for path in Path("run/checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)


CLASSES = ["torch.hub.load", "subprocess.Popen", "builtins.eval", "os.system", "evil.m", "evil",
           "vimamba.cli.main", "pytorch_lightning.LightningModule", "", 7, None]  # fmt: skip


@pytest.mark.parametrize("part", ["model", "data"])
@pytest.mark.parametrize("path", CLASSES, ids=str)
def test_no_class_path_of_a_run_is_imported(part, path, folder, sent, capsys):
    change_settings(lambda settings: settings[part].update(class_path=path))
    hub = {"repo_or_dir": "run", "model": "m", "source": "local"}
    if part == "model":
        change_checkpoints(lambda content: content.update(hyper_parameters=hub))
    for args in commands(sent).values():
        check_refused(args, capsys, f"{part}.class_path={path!r} is not a known ", "--import")


EVIL = {"class_path": "evil.m", "init_args": {}}
NESTED = {
    "model_kwargs": lambda s: s["model"]["init_args"]["model_kwargs"].update(norm_layer=EVIL),
    "a text": lambda s: s["model"]["init_args"]["model_kwargs"].update(norm_layer="evil.m"),
    "a list": lambda s: s["model"]["init_args"]["model_kwargs"].update(depth=[[EVIL]]),
    "a network": lambda s: s["model"]["init_args"].update(model="evil.m"),
    "optim": lambda s: s["model"]["init_args"].update(optim=EVIL),
    "objective": lambda s: s["model"]["init_args"].update(objective="evil.yaml"),
    "augmentation": lambda s: s["data"]["init_args"].update(augmentation=EVIL),
    "a file of timm's": lambda s: s["model"]["init_args"]["model_kwargs"].update(
        checkpoint_path="evil.pth"
    ),
    "another section": lambda s: s.update(config="evil.yaml"),
    "optimizer": lambda s: s.update(optimizer=EVIL),
    "model": lambda s: s.update(model="evil.yaml"),
    "dict_kwargs": lambda s: s["model"].update(dict_kwargs={"x": EVIL}),
    "trainer": lambda s: s["trainer"].update(precision=EVIL),
    "precision": lambda s: s["trainer"].update(precision="evil.m"),
    "devices": lambda s: s["trainer"].update(devices="evil.m"),
    "strategy": lambda s: s["trainer"].update(strategy="evil.m"),
    "strategy's class": lambda s: s["trainer"].update(strategy=EVIL),
    "accelerator": lambda s: s["trainer"].update(accelerator=EVIL),
}


def list_types(hint):
    inner = get_args(hint)
    whole = not inner or get_origin(hint) is Literal
    return {hint} if whole else set().union(*map(list_types, inner))


@pytest.mark.parametrize(
    ("section", "name"), [(section, name) for section in PARTS for name in PARTS[section]]
)
def test_what_a_run_may_give_to_parts_of_lightning_is_no_object(section, name):
    plugins = {"logger": "loggers", "strategy": "strategies", "profiler": "profilers"}
    module = importlib.import_module(f"{PACKAGE}.{plugins.get(section, section)}")
    hints = get_type_hints(getattr(module, name).__init__, localns={"Run": Any, "RunDisabled": Any})
    for argument in PARTS[section][name]:
        plain = {str, int, float, bool, dict, Any, type(None), Path, timedelta}
        types = list_types(
            hints.get(argument, Any)
        )  # torch's DDP accepts values without type hints
        # the first matching type is used: text is valid for a path and a time, not for a class
        assert all(t in plain or get_origin(t) is Literal for t in types), (argument, types)
        assert not types & {Path, timedelta} or str in types


@pytest.mark.parametrize("trick", NESTED)
def test_no_value_of_a_run_is_a_class(trick, folder, sent, capsys):
    change_settings(NESTED[trick])
    of_whole = trick in (*("trainer", "precision", "devices", "accelerator"),
                           *("strategy", "strategy's class", "a network", "a text"))  # fmt: skip
    for name, args in commands(sent).items():
        if not of_whole or name in ("test", "validate", "resume"):
            check_refused(args, capsys)


CALLBACKS = "pytorch_lightning.callbacks."
IN_TRAINING = {
    "callbacks": [{"class_path": "evil.m"}],
    "logger": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "CODE_RAN"]}},
    "plugins": [{"class_path": "evil.m"}],
    "profiler": "evil.m",
}
REFUSED_PARTS = [
    ("callbacks", "evil.m"),
    ("callbacks", ["evil.m"]),
    ("callbacks", {"class_path": CALLBACKS + "LambdaCallback",
                   "init_args": {"on_fit_start": "evil.m"}}),
    ("callbacks", {"class_path": CALLBACKS + "EarlyStopping",
                   "init_args": {"monitor": {"class_path": "evil.m"}}}),
    ("callbacks", {"class_path": CALLBACKS + "StochasticWeightAveraging",
                   "init_args": {"swa_lrs": 0.1, "avg_fn": "evil.m"}}),
    ("logger", {"class_path": "pytorch_lightning.loggers.MLFlowLogger",
                "init_args": {"tracking_uri": "https://example.org"}}),
]  # fmt: skip


@pytest.mark.parametrize("name", IN_TRAINING)
def test_scoring_a_run_leaves_out_what_acts_in_training(name, folder, sent):
    change_settings(lambda settings: settings["trainer"].update({name: IN_TRAINING[name]}))
    assert main(["test", "run"]) == 0
    assert not Path("CODE_RAN").exists()


@pytest.mark.parametrize(("name", "value"), [*IN_TRAINING.items(), *REFUSED_PARTS])
def test_resuming_a_run_refuses_foreign_parts_of_the_trainer(name, value, folder, capsys):
    change_settings(lambda settings: settings["trainer"].update({name: value}))
    check_refused(["fit", "--resume", "run"], capsys, f"trainer.{name}")


def test_resuming_a_run_keeps_lightnings_own_parts(folder, capsys):
    stopping = {"monitor": "val/loss", "patience": 7}
    parts = [{"class_path": CALLBACKS + "EarlyStopping", "init_args": stopping}]
    change_settings(lambda settings: settings["trainer"].update(callbacks=parts, max_epochs=2))
    assert main(["fit", "--resume", "run"]) == 0
    kept = yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]["callbacks"]
    assert kept[0]["init_args"]["patience"] == 7


ARGUMENTS = {
    "an address": {"model": "hf-hub:someone/something"},
    "a folder": {"model": "local-dir:/somewhere"},
    "a class": {"model_kwargs": {"norm_layer": EVIL}},
    "a file": {"model_kwargs": {"checkpoint_path": "evil.pth"}},
    "another name": {"repo_or_dir": "run"},
    "another type": {"model": 5},
    "a number as a list": {"num_classes": [2]},
    "a tensor": {"class_names": torch.ones(2)},
    "a size that does not fit": {"num_classes": 3, "class_names": ["a", "b", "c"]},
    "a size that no network has": {"model_kwargs": {"embed_dim": -16}},
}


@pytest.mark.parametrize("trick", ARGUMENTS)
def test_arguments_in_a_checkpoint_are_checked(trick, folder, sent, capsys):
    change_checkpoints(lambda content: content["hyper_parameters"].update(ARGUMENTS[trick]))
    for name in ("predict", "doctor", "export"):
        check_refused(commands(sent)[name], capsys, "best.ckpt")


class Trap:
    """Its pickle imports and calls."""

    def __reduce__(self):
        return (__import__, ("evil",))


def test_pickles_in_a_run_or_an_export_run_nothing(folder, sent, capsys):
    for path in Path("run/checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        torch.save({**content, "extra": Trap()}, path)
    for args in commands(sent).values():
        if args[0] == "fit":
            check_refused(args, capsys, "last.ckpt contains objects")
        else:
            assert main(args) == 0
            assert not Path("CODE_RAN").exists()
    for path in Path("run/checkpoints").glob("*.ckpt"):
        path.write_bytes(pickle.dumps(Trap()))
    for args in commands(sent).values():
        check_refused(args, capsys, "no checkpoint that can be read safely")


TAGS = ["!!python/object/apply:os.system ['touch CODE_RAN']", "!!python/name:evil.m",
        "!!python/module:evil", "!!python/object/new:evil.m {}"]  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_tags_in_settings_run_nothing(tag, folder, sent, capsys):
    text = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(text + f"\nextra: {tag}\n")
    for args in commands(sent).values():
        check_refused(args, capsys, "config.yaml cannot be read")


def bomb(levels=30):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, levels)]
    return "\n".join(lines)


SETTINGS = {
    "an alias bomb": bomb(),
    "a merge bomb": "a: &a {x: 1}\nb: {<<: [*a, *a]}",
    "a circle": "a: &a [*a]",
    "depth": "a: " + "[" * 5000,
    "size": "a: " + "x" * 2_000_000,
    "nothing": "",
    "a list": "- model",
    "half": "model: [1,\n",
    "no text": "a: \udc80",
    "numbers for names": "1: 2",
}


@pytest.mark.parametrize("trick", SETTINGS)
def test_broken_settings_are_one_line(trick, folder, sent, capsys):
    content = SETTINGS[trick].encode("utf-8", "surrogateescape")
    Path("run/config.yaml").write_bytes(content)
    for name in ("predict", "test", "resume"):
        check_refused(commands(sent)[name], capsys, "config.yaml")


def test_half_a_run_is_one_line(folder, sent, capsys):
    whole = Path("run/checkpoints/best.ckpt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        for path in Path("run/checkpoints").glob("*.ckpt"):
            path.write_bytes(content)
        for args in commands(sent).values():
            check_refused(args, capsys, ".ckpt")
    for key in ("hyper_parameters", "state_dict"):
        for path in Path("run/checkpoints").glob("*.ckpt"):
            path.write_bytes(whole)
        change_checkpoints(lambda content, key=key: content.pop(key))
        for name in ("predict", "doctor", "export", "test"):
            check_refused(commands(sent)[name], capsys, key)
    shutil.rmtree("run/checkpoints")
    for args in commands(sent).values():
        check_refused(args, capsys, "there is no")


def test_weights_that_are_not_finite_are_not_used(folder, sent, capsys):
    def spoil(content):
        content["state_dict"]["net.head.bias"][0] = float("nan")

    change_checkpoints(spoil)
    for name in ("predict", "test", "doctor", "export"):
        check_refused(commands(sent)[name], capsys, "not finite", "1 tensor: net.head.bias")
    model = timm.create_model("test_vim")
    torch.nn.init.constant_(model.head.bias, float("inf"))
    for save in (vimamba.save_pretrained, vimamba.push_to_hub):
        with pytest.raises(CheckpointError, match="not finite"):
            save(model, "out")
    assert not Path("out").exists()


EXPORTS = {
    "an unknown model": {"architecture": "evil"},
    "an address": {"architecture": "hf-hub:someone/something"},
    "no name": {"architecture": ["test_vim"]},
    "a file": {"model_args": {"checkpoint_path": "evil.pth"}},
    "an argument of another type": {"model_args": {"depth": "x"}},
    "arguments in a list": {"model_args": [1]},
    "a config in a list": {"pretrained_cfg": [1]},
}


@pytest.fixture
def export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return vimamba.save_pretrained(timm.create_model("test_vim"), tmp_path / "export")


@pytest.mark.parametrize("trick", EXPORTS)
def test_an_export_names_a_registered_model_and_plain_arguments(trick, export, capsys):
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({**config, **EXPORTS[trick]}))
    with pytest.raises(CheckpointError):
        load_folder(export)
    for args in (["doctor", "export"], ["export", "local-dir:export", "--to", "onnx"]):
        check_refused(args, capsys)


def test_an_export_says_nothing_about_where_its_weights_are(export):
    config = json.loads((export / "config.json").read_text())
    elsewhere = {"url": "https://example.org/x.pth", "file": "/x.pth", "hf_hub_id": "a/b",
                 "source": "hf-hub", "custom_load": True}  # fmt: skip
    config["pretrained_cfg"].update(elsewhere)
    (export / "config.json").write_text(json.dumps(config))
    state = load_folder(export).state_dict()
    for name, value in load_file(export / "model.safetensors").items():
        torch.testing.assert_close(state[name], value)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"", b"[1]", b"\xff", b'{"a": ' + b"9" * 10_000 + b"}"],
    ids=["depth", "empty", "list", "no text", "digits"],
)
def test_a_broken_config_of_an_export_is_one_line(content, export, capsys):
    (export / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_folder(export)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        vimamba.load_segmenter(export)
    check_refused(["doctor", "export"], capsys, "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "evil.m"},
        {"name": "hf-hub:someone/something"},
        {"name": ["vm_unet"]},
        {"model": "hf-hub:someone/something"},
        {"model": "local-dir:/somewhere"},
        {"stages": [{"model": "local-dir:/somewhere"}]},
        {"checkpoint_path": "evil.pth"},
        {"pretrained_cfg": {"file": "evil.pth"}},
        {"pretrained_cfg_overlay": {"file": "evil.pth"}},
        {"model": 5},
        {"head": "evil.m"},
        {"num_classes": "two"},
        {"surplus": 1},
    ],
    ids=str,
)
def test_an_exported_network_is_built_from_what_is_known(change, tmp_path):
    net = vimamba.create_segmenter("test_vmamba", head="fpn", num_classes=1)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    network = {**net.config, "pretrained": True}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"network": network}))
    vimamba.load_segmenter(tmp_path)  # nothing is downloaded, whatever the file requests
    config.write_text(json.dumps({"network": {**network, **change}}))
    for load in (vimamba.load_segmenter, vimamba.load_network, load_folder):
        with pytest.raises(CheckpointError):
            load(tmp_path)


def rezip(path, change, **options):
    """Rewrite a checkpoint's records, each after `change(name, content)`."""
    base = io.BytesIO()
    torch.save({"model": {"x": torch.zeros(4)}}, base)
    old = zipfile.ZipFile(base)
    with zipfile.ZipFile(path, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def promise(count):
    """A pickle that states a different size for a storage."""

    def change(name, content):
        new = b"J" + struct.pack("<i", count) + b"tq"
        return content.replace(b"K\x04tq", new) if name.endswith("data.pkl") else content

    return change


def replace_pickle(code):
    return lambda name, content: code if name.endswith("data.pkl") else content


BOMBS = {
    "deflated": (lambda n, c: bytes(1 << 20) if n.endswith("data/0") else c,
                 {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
    "storage beyond its record": (promise(8), {}, "storage 0 has 16 bytes, not 32"),
    "storage beyond the file": (promise(1 << 30), {}, "larger than the file"),
    "stack underflow": (replace_pickle(b"\x80\x02R."), {}, "damaged"),
    "no memo": (replace_pickle(b"\x80\x02h\x99."), {}, "damaged"),
    "a foreign id": (replace_pickle(b"\x80\x02K\x01Q."), {}, "damaged"),
    "a dictionary as a key": (replace_pickle(b"\x80\x02}}K\x01s."), {}, "damaged"),
    "too few arguments": (replace_pickle(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01\x85R."),
                          {}, "damaged"),
    "much memory": (replace_pickle(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x40\x85R."),
                    {}, "needs code"),
    "a changed function": (replace_pickle(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b."),
                           {}, "changes a method"),
}  # fmt: skip


@pytest.mark.parametrize("trick", BOMBS)
def test_a_checkpoint_takes_no_more_than_its_file(trick, tmp_path):
    change, options, message = BOMBS[trick]
    rezip(tmp_path / "bomb.pth", change, **options)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "bomb.pth")


def test_records_that_overlap_are_refused(tmp_path):
    rezip(tmp_path / "bomb.pth", lambda name, content: content)
    read_checkpoint(tmp_path / "bomb.pth")
    whole = bytearray((tmp_path / "bomb.pth").read_bytes())
    entries = [i for i in range(len(whole)) if whole[i : i + 4] == b"PK\x01\x02"]
    whole[entries[1] + 42 : entries[1] + 46] = whole[entries[0] + 42 : entries[0] + 46]
    (tmp_path / "bomb.pth").write_bytes(whole)
    with pytest.raises(CheckpointError, match="no checkpoint that can be read safely"):
        read_checkpoint(tmp_path / "bomb.pth")


def test_a_tensor_that_repeats_one_number_is_bounded(tmp_path):
    torch.save({"x": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="larger than the file"):
        read_checkpoint(tmp_path / "bomb.pth")


HEADERS = {
    "no header": b"hello world, no header",
    "empty": b"",
    "a huge header": struct.pack("<Q", 1 << 60) + b"{}",
    "no JSON": struct.pack("<Q", 8) + b"{{{{{{{{",
    "depth": struct.pack("<Q", 50_000) + b"[" * 50_000,
    "beyond the end": struct.pack("<Q", 60)
    + b'{"a":{"dtype":"F32","shape":[999],"data_offsets":[0,3996]}}'.ljust(60),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_broken_safetensors_file_is_one_line(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(HEADERS[name])
    with pytest.raises(CheckpointError, match="no checkpoint that can be read safely"):
        read_checkpoint(tmp_path / "x.safetensors")
    check_refused(["identify", "x.safetensors"], capsys)


def test_the_older_format_is_read_and_bounded(tmp_path):
    state = {"model": {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(2).bfloat16()}}
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    read = read_checkpoint(path)["model"]
    assert torch.equal(read["a"], state["model"]["a"])
    assert torch.equal(read["b"], state["model"]["b"])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"K\x06Nt", b"J\xff\xff\xff\x7fNt"))
    with pytest.raises(CheckpointError, match="larger than the file"):
        read_checkpoint(path)
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "value",
    [torch.eye(3).to_sparse(), torch.nn.Linear(2, 2)],
    ids=["sparse", "module"],
)
def test_other_kinds_of_tensors_are_named(value, tmp_path):
    content = value if isinstance(value, torch.nn.Module) else {"model": {"x": value}}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"is not dense|needs code"):
        read_checkpoint(tmp_path / "x.pth")


def test_names_and_nesting_that_no_weights_have_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    circle: dict = {}
    circle["model"] = circle
    deep: dict = {"x": torch.zeros(1)}
    for _ in range(300):
        deep = {"model": deep}
    numbered = {"model": {"a": torch.zeros(1), 5: torch.zeros(1)}}
    for number, content in enumerate((circle, deep, numbered)):
        torch.save(copy.copy(content), f"{number}.pth")
        check_refused(["identify", f"{number}.pth"], capsys, f"{number}.pth")


def test_what_cannot_be_opened_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder.pth")
    with pytest.raises(CheckpointError, match="it is a folder"):
        read_checkpoint("folder.pth")
    check_refused(["doctor", "folder.pth"], capsys, "neither a run")
    check_refused(["doctor", "test_vim", "--checkpoint", "folder.pth"], capsys, "is not a file")
