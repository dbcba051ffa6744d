"""`vimamba nnunet`; tests/integrations/test_nnunet_docs.py runs `train` and `predict`."""

import json

import pytest

from tests.nnunet_plans import DATASET, write_plans
from vimamba.cli import main


@pytest.fixture
def plans_json(tmp_path):
    return write_plans(tmp_path / "preprocessed")


def test_the_command_plans(plans_json, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    command = ["nnunet", "plan", "901", "--network", "test_vmamba", "--patch-size", "60", "60"]
    assert main([*command, "--model-kwargs", "head=unet", "aux=true"]) == 0
    printed = capsys.readouterr().out
    assert "configuration 2d_test_vmamba, patches of 64 x 64" in printed
    assert (
        "vimamba nnunet train Dataset901_Shapes 2d_test_vmamba 0 -p nnUNetPlans_vimamba "
        "-tr nnUNetTrainerVimambaEncoder"
    ) in printed
    plans = json.loads(plans_json.with_name("nnUNetPlans_vimamba.json").read_text())
    arch_kwargs = plans["configurations"]["2d_test_vmamba"]["architecture"]["arch_kwargs"]
    assert arch_kwargs["network"] == "test_vmamba"
    assert arch_kwargs["network_kwargs"] == {"img_size": 64, "head": "unet", "aux": True}


@pytest.mark.parametrize("network", ["segmamba", "vss_unet_3d_small", "umamba_enc_3d"])
def test_the_command_plans_networks_of_volumes(network, plans_json, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert main(["nnunet", "plan", "901", "--network", network, "--base", "3d_fullres"]) == 0
    plans = json.loads(plans_json.with_name("nnUNetPlans_vimamba.json").read_text())
    planned = plans["configurations"][f"3d_fullres_{network}"]
    assert planned["inherits_from"] == "3d_fullres"
    assert planned["architecture"]["arch_kwargs"]["network"] == network
    assert len(planned["patch_size"]) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["plan", "77", "--network", "vm_unet"], "0 plans match Dataset077_*/nnUNetPlans.json"),
        (["plan", "901", "--network", "nothing_here"], "model='nothing_here' is unknown"),
        (["plan", "no.json", "--network", "vm_unet"], "no.json is not a file"),
        (
            ["train", "901", "2d", "0", "-tr", "nnUNetTrainerUMambaBot", "-num_gpus", "2"],
            "from 2.8",
        ),
        (["fly"], "vimamba nnunet fly is unknown"),
    ],
)
def test_the_command_names_mistakes(args, message, plans_json, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert main(["nnunet", *args]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ("1", "add one with `vimamba nnunet plan`, and select its plans with -p"),
        ("few", "VIMAMBA_NNUNET_EPOCHS=few must be a whole number from 1"),
    ],
)
def test_a_trainer_that_cannot_work_says_so_in_one_line(
    epochs, message, plans_json, tmp_path, monkeypatch, capsys
):
    from nnunetv2.run import run_training
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer  # noqa: N813  a module

    # nnU-Net reads its variables when it is imported
    for module in (run_training, trainer):
        monkeypatch.setattr(module, "nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setattr(trainer, "nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("VIMAMBA_NNUNET_EPOCHS", epochs)
    plans_json.with_name("dataset.json").write_text(json.dumps(DATASET))
    command = ["nnunet", "train", "Dataset901_Shapes", "2d", "0", "-device", "cpu"]
    assert main([*command, "-tr", "nnUNetTrainerVimambaEncoder"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error


def test_the_check_names_what_is_missing(tmp_path, monkeypatch, capsys):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    assert main(["nnunet", "check"]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "nnUNetTrainerUMambaEncNoAMP" in printed
    assert "timm" in printed
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert main(["nnunet", "check"]) == 1
    printed = capsys.readouterr().out
    assert "export nnUNet_raw=FOLDER" in printed
    assert "unset it for planning" in printed


def test_the_check_names_versions_that_do_not_go_together(tmp_path, monkeypatch, capsys):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    needed = {"nnunetv2": ["timm<1.0.2", "nothing-like-it>=3", "ruff<0; extra == 'dev'"]}
    monkeypatch.setattr("vimamba.cli.nnunet.requires", needed.get)
    assert main(["nnunet", "check"]) == 1
    printed = capsys.readouterr().out
    assert "install timm<1.0.2" in printed
    assert "install nothing-like-it>=3" in printed
    assert "ruff" not in printed
