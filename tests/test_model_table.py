"""Stored facts about models are correct, docs/models.md and list-models agree with them."""

import json
import sys
from dataclasses import asdict

import pytest
import timm
import torch

from tests.documents import find_commands, read
from tests.parity.official import shapes_only
from tools.model_table import families, measure, models_text, names_text, with_tables, write
from vimamba.checkpoints import count_blocks, find_facts
from vimamba.cli import main
from vimamba.cli.model_list import describe_model, find_models, read_rows
from vimamba.timm_names import create_skeleton

DOCUMENT = read("docs/models.md")
RELEASED = [name for family in families() for name in family.list_models()]
AGAIN = "run python tools/model_table.py"


def test_what_is_listed_of_every_model_and_no_other_is_stored():
    assert read_rows() == [describe_model(name) for name in find_models("*")], AGAIN


def test_the_stored_names_are_those_of_the_parameters():
    assert read("vimamba/models/names.json") == names_text(), AGAIN


def test_the_document_is_what_the_registry_says():
    assert with_tables(DOCUMENT, models_text()) == DOCUMENT, AGAIN


def test_accuracies_are_those_of_pretrained_configs():
    for family in families():
        for key in family.top1:
            name, _, tag = key.partition(".")
            assert name in family.list_models(), key
            assert timm.get_pretrained_cfg(key).tag == tag


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_the_stored_sizes_are_those_of_the_smallest_model(family):
    facts = {name: find_facts(name) for name in family.list_models()}
    name = min(facts, key=lambda name: facts[name].params)
    net = create_skeleton(name)
    weights = net.state_dict()
    assert facts[name].params == sum(p.numel() for p in net.parameters()), AGAIN
    assert facts[name].depth == count_blocks(weights), AGAIN
    assert facts[name].features == net.get_classifier().in_features, AGAIN
    first = net.get_submodule(net.pretrained_cfg["first_conv"])
    assert facts[name].width == first.out_channels, AGAIN


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_the_stored_facts_are_those_of_the_model(name):
    assert find_facts(name) == measure(name), AGAIN


def test_facts_that_were_written_are_those_read_next(tmp_path, monkeypatch):
    module = sys.modules[timm.model_entrypoint("vmamba_tiny_s1l8").__module__]
    known = asdict(find_facts("vmamba_tiny_s1l8"))
    monkeypatch.setattr(module, "__file__", str(tmp_path / "vmamba.py"))
    for params in (1, 2):
        facts = {"vmamba_tiny_s1l8": {**known, "params": params}}
        write(tmp_path / "facts.json", json.dumps(facts))
        assert find_facts("vmamba_tiny_s1l8").params == params


def rows(capsys, *args):
    assert main(["list-models", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_models_are_picked_by_family_size_license_and_weights(capsys):
    found = rows(capsys, "--family", "vmamba", "--max-params", "31", "--license", "MIT")
    assert {row["name"] for row in found} == {
        "vmamba_tiny_s1l8", "vmamba_tiny_s2l5", "vmamba_tiny_v0",
    }  # fmt: skip
    (row,) = rows(capsys, "vim_tiny_rope*")
    assert (row["family"], row["params"], row["top1"]) == ("Vim", 7_148_008, 73.1)
    assert row["gflops"] > 1
    assert rows(capsys, "vim_tiny_rope*", "--pretrained") == []


def test_all_lists_timms_own_models_without_making_them(capsys, monkeypatch):
    monkeypatch.setattr(timm, "create_model", None)
    (row,) = rows(capsys, "vit_tiny_patch16_384", "--all")
    assert (row["params"], row["family"], row["input_size"]) == (None, None, [3, 384, 384])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--family", "Vmam"], "--family Vmam is unknown; choose from"),
        (["--max-params", "0"], "--max-params 0.0 must be more than 0"),
        (["--family", "Vim", "--license", "cc-by-nc-sa-4.0"], "no model fits --family Vim"),
    ],
)
def test_what_cannot_be_picked_is_named(args, message, capsys):
    assert main(["list-models", *args]) == 2
    assert message in capsys.readouterr().err


def test_the_commands_of_the_document_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    official = {"model": shapes_only("vmamba_tiny_s1l8")}
    torch.save(official, tmp_path / "vssm1_tiny_0230s_ckpt_epoch_264.pth")
    commands = find_commands(DOCUMENT)
    assert len(commands) == 5
    for command in commands:
        assert main(command.split()[1:]) == 0, command
    assert "vmamba_tiny_s1l8" in capsys.readouterr().out
    assert (tmp_path / "vmamba_tiny" / "config.json").exists()
