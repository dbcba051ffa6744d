"""`vimamba nnunet`: nnU-Net with vimamba's networks and trainers."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from vimamba.cli.inquiries import make_parser
from vimamba.cli.networks import parse_pairs
from vimamba.console import command_line, say, show_table
from vimamba.errors import UsageError

HELP = """\
nnU-Net with vimamba's networks; needs `pip install "vimamba[nnunet]"`

  vimamba nnunet check                                  is everything ready?
  vimamba nnunet plan 7 --network umamba_bot_2d         add a configuration to a data set's plans
  vimamba nnunet train 7 2d 0 -tr nnUNetTrainerUMambaBot      nnUNetv2_train with our trainers
  vimamba nnunet predict -i IN -o OUT -d 7 -c 2d -tr nnUNetTrainerUMambaBot
  vimamba nnunet predict -i IN -o OUT -m MODEL_FOLDER   nnUNetv2_predict with our trainers
  vimamba nnunet path                                   for nnUNet_extTrainer of nnU-Net 2.8

Trainers, all with AdamW: nnUNetTrainerVimambaEncoder for the networks of `plan`,
nnUNetTrainerUMambaBot and nnUNetTrainerUMambaEnc for any configuration; ...NoAMP in float32.
VIMAMBA_NNUNET_EPOCHS and VIMAMBA_NNUNET_ITERS set how long they train.
"""
# environment variables of nnU-Net
PREPROCESSED = "nnUNet_preprocessed"
PATHS = ("nnUNet_raw", PREPROCESSED, "nnUNet_results")
TRAINERS = "nnUNet_extTrainer"
WORKERS = "nnUNet_n_proc_DA"


def nnunet(args: list[str]) -> int:
    """Run a subcommand; returns the exit code."""
    commands = {"path": _path, "plan": _plan, "train": _train, "predict": _predict, "check": _check}
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if args[0] not in commands:
        raise UsageError(f"vimamba nnunet {args[0]} is unknown; choose from {', '.join(commands)}")
    if args[0] != "path":
        importlib.import_module("nnunetv2")  # raises with an install hint if missing
    return commands[args[0]](args[1:])


def _path(args: list[str]) -> int:
    from vimamba.integrations.nnunet import trainer_folder

    make_parser("nnunet path", "Prints the folder for nnUNet_extTrainer.").parse_args(args)
    print(trainer_folder())
    return 0


def _plan(args: list[str]) -> int:
    from vimamba.integrations.nnunet import add_configuration

    parser = make_parser(
        "nnunet plan",
        "Adds a configuration with a network of vimamba's to the plans of a data set.\n\n"
        "  vimamba nnunet plan 7 --network umamba_enc_2d\n"
        "  vimamba nnunet plan 7 --network vmamba_tiny_s1l8 --model-kwargs head=unet",
    )
    parser.add_argument("dataset", help="number or name of the data set, or its plans file")
    parser.add_argument("--network", required=True, help="umamba_bot_2d, a model, ...")
    parser.add_argument("--name", help="name of the configuration; base and network by default")
    parser.add_argument("--base", default="2d", help="configuration to take everything else from")
    parser.add_argument("--plans", default="nnUNetPlans", help="plans to add to")
    parser.add_argument("--plans-name", default="nnUNetPlans_vimamba", help="plans to write")
    parser.add_argument("--patch-size", nargs="+", type=int, help="pixels; the base's by default")
    parser.add_argument("--batch-size", type=int, help="patches; the base's by default")
    parser.add_argument("--no-amp", action="store_true", help="run the network in float32")
    note = "other arguments of the network, such as head=unet or pretrained=true"
    parser.add_argument("--model-kwargs", nargs="+", default=[], metavar="NAME=VALUE", help=note)
    given = parser.parse_args(args)
    try:
        added = add_configuration(
            _find_plans(given.dataset, given.plans),
            network=given.network,
            name=given.name,
            base=given.base,
            patch_size=given.patch_size,
            batch_size=given.batch_size,
            plans_name=given.plans_name,
            amp=not given.no_amp,
            **parse_pairs(given.model_kwargs),
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    size = " x ".join(map(str, added.patch_size))
    say(f"configuration {added.name}, patches of {size}, written to {added.plans_file}")
    train = ("train", added.plans_file.parent.name, added.name, "0", "-p", added.plans_name)
    say("train it with nnUNetv2_train, or with AdamW:")
    say(f"  {command_line('nnunet', *train, '-tr', 'nnUNetTrainerVimambaEncoder')}")
    return 0


def _find_plans(dataset: str, plans: str) -> Path:
    if dataset.endswith(".json"):
        if not Path(dataset).is_file():
            raise UsageError(f"{dataset} is not a file")
        return Path(dataset)
    root = os.environ.get(PREPROCESSED)
    if root is None:
        raise UsageError(f"{PREPROCESSED} is not set: it names nnU-Net's folder of plans")
    folder = f"Dataset{int(dataset):03d}_*" if dataset.isdecimal() else dataset
    found = sorted(Path(root).glob(f"{folder}/{plans}.json"))
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} plans match {folder}/{plans}.json in {root}; "
            f"`nnUNetv2_plan_and_preprocess -d {dataset}` creates them"
        )
    return found[0]


def _train(args: list[str]) -> int:
    from nnunetv2.run.run_training import run_training_entry

    from vimamba.integrations.nnunet import register

    trainers = register()
    gpus = args[args.index("-num_gpus") + 1 :][:1] if "-num_gpus" in args else ["1"]
    if gpus != ["1"] and _version("nnunetv2") < (2, 8) and set(args) & set(trainers):
        raise UsageError(
            f"-num_gpus {' '.join(gpus)}: on several GPUs nnU-Net finds our trainers from 2.8 on, "
            f"and this is {version('nnunetv2')}; nnU-Net's own trainers train "
            "`vimamba nnunet plan`'s configurations on them"
        )
    with _as_command("train", args):
        run_training_entry()
    return 0


def _predict(args: list[str]) -> int:
    from nnunetv2.inference import predict_from_raw_data as prediction

    from vimamba.integrations.nnunet import register

    register()
    with _as_command("predict", args):
        if "-m" in args:
            prediction.predict_entry_point_modelfolder()
        else:
            prediction.predict_entry_point()
    return 0


@contextmanager
def _as_command(name: str, args: list[str]) -> Iterator[None]:
    """Pass arguments to nnU-Net, and let the processes that it starts find our trainers."""
    from vimamba.integrations.nnunet import trainer_folder

    folders = [str(trainer_folder()), os.environ.get(TRAINERS, "")]
    os.environ[TRAINERS] = os.pathsep.join(filter(None, folders))
    before = sys.argv
    sys.argv = [f"vimamba nnunet {name}", *args]
    try:
        yield
    finally:
        sys.argv = before


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


def _check(args: list[str]) -> int:
    make_parser("nnunet check", "Says whether nnU-Net is ready.").parse_args(args)
    rows = [*_check_versions(), *_check_settings(), *_check_trainers()]
    show_table("nnU-Net with vimamba", ["what", "found", "to do"], rows)
    return int(any(row[2] for row in rows))


def _check_versions() -> Iterator[list[str]]:
    """Check the packages that nnU-Net and its networks need."""
    from packaging.requirements import Requirement

    old = _version("nnunetv2") < (2, 7)
    yield ["nnunetv2", version("nnunetv2"), "install nnunetv2>=2.7" if old else ""]
    for package in ("nnunetv2", "dynamic-network-architectures"):
        for requirement in map(Requirement, requires(package) or []):
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            try:
                found = version(requirement.name)
            except PackageNotFoundError:
                found = "missing"
            fits = found != "missing" and requirement.specifier.contains(found, prereleases=True)
            if not fits or requirement.name in ("torch", "timm"):
                yield [
                    f"{requirement} ({package})",
                    found,
                    "" if fits else f"install {requirement}",
                ]


def _check_settings() -> Iterator[list[str]]:
    """Check nnU-Net's environment variables."""
    for variable in PATHS:
        value = os.environ.get(variable)
        if value is None:
            yield [variable, "not set", f"export {variable}=FOLDER"]
        else:
            yield [variable, value, "" if Path(value).is_dir() else "create this folder"]
    if os.environ.get(WORKERS) == "0":
        yield [WORKERS, "0", "unset it for planning, which fails with 0"]


def _check_trainers() -> Iterator[list[str]]:
    """Check that nnU-Net finds our trainers."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    from vimamba.integrations.nnunet import register

    folder = str(Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer")
    for name in register():
        found = recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")
        yield [name, "found" if found else "not found", "" if found else "report this to vimamba"]
