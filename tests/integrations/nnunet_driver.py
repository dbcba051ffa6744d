"""Runs commands of docs/nnunet.md one after another, with small settings, in one process.

It is a separate program because nnU-Net reads the paths of its folders when it is imported.
"""

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys

# the smallest networks
SMALL = {
    "vmamba_tiny_s1l8": ["depths=[1,1,1,1]", "dims=[8,16,24,32]"],
    "vm_unet": ["depths=[1,1]", "decoder_depths=[1,1]", "dims=[8,16]"],
}


def made_small(argv):
    """The command for a machine without a GPU, in as few processes as it can."""
    name = " ".join(argv[:3]) if argv[0] == "vimamba" else argv[0]
    if name == "nnUNetv2_plan_and_preprocess":
        return [*argv, "-np", "1", "-npfp", "1"]
    if name in ("nnUNetv2_train", "vimamba nnunet train"):
        return [*argv, "-device", "cpu"]
    if name in ("nnUNetv2_predict", "vimamba nnunet predict"):
        # nnU-Net needs processes for a model's folder
        processes = "1" if "-m" in argv else "0"
        argv = [*argv, "-device", "cpu", "--disable_tta"]
        return [*argv, "-npp", processes, "-nps", processes]
    if name == "vimamba nnunet plan":
        argv = argv if "--model-kwargs" in argv else [*argv, "--model-kwargs"]
        return [*argv, *SMALL[argv[argv.index("--network") + 1]], "--batch-size", "2"]
    return argv


def shorten_own_trainer():
    """One iteration for nnU-Net's own trainer, which has no setting for that."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    start = nnUNetTrainer.on_train_start

    def shortened(trainer):
        trainer.num_epochs = 1
        trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
        start(trainer)

    nnUNetTrainer.on_train_start = shortened


def run(command):
    if command.startswith("export "):
        shown = subprocess.check_output(["bash", "-ec", f"{command}; env -0"], text=True)
        os.environ.update(pair.split("=", 1) for pair in shown.split("\0") if pair)
        return
    sys.argv = made_small(shlex.split(command))
    if sys.argv[0] == "nnUNetv2_train":
        shorten_own_trainer()
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=sys.argv[0])
    code = script.load()()
    if code:
        sys.exit(f"{command}: {code}")


if __name__ == "__main__":
    for line in json.loads(os.environ["COMMANDS"]):
        print("$", line, flush=True)
        run(line)
