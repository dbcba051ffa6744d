"""`vimamba export`: a network as a file for other programs, or on the Hugging Face Hub."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from vimamba.checkpoints import check_finite
from vimamba.cli.inquiries import check_destination, complete_options, make_parser
from vimamba.cli.networks import Network, add_arguments, open_network
from vimamba.console import say, show_table
from vimamba.errors import UsageError
from vimamba.exporting import TARGETS, Report, export_folder, export_model

HELP = """\
Writes a model, or a run's network, for other programs:

  onnx          standard ONNX operators only, for onnxruntime and others
  torch-export  for torch.export.load, in a program that imports vimamba
  aoti          compiled for this machine, for torch._inductor.aoti_load_package, likewise
  safetensors   a folder of weights and config.json, for timm.create_model("local-dir:FOLDER"), or
                for vimamba.load_network("FOLDER") if it is a whole network
  hub           the same, as a repository on the Hugging Face Hub

Every file is run and compared with the model before it is kept. The checks, and which sizes of the
input are dynamic, are printed and written next to it, as FILE.json, with the classes and the
preprocessing that the network expects.

  vimamba export vmamba_tiny_s1l8 --pretrained --to onnx
  vimamba export vim_tiny_patch16_224 --model-kwargs dynamic_img_size=true --to onnx
  vimamba export runs/photos --to onnx --out photos.onnx
  vimamba export runs/photos --to hub --repo OWNER/NAME
"""
# options of each target, with defaults
OPTIONS = {
    **{target: {"out": None, "fixed_size": False} for target in TARGETS},
    "safetensors": {"out": None},
    "hub": {"repo": None, "private": False},
}


def export(args: list[str]) -> int:
    """Export a network; returns the exit code."""
    parser = make_parser("export", HELP)
    add_arguments(parser)
    parser.add_argument("--to", required=True, choices=tuple(OPTIONS), help="what to write")
    parser.add_argument("--out", type=Path, help="file or folder; named after the model by default")
    flag = {"action": "store_true", "default": None}
    parser.add_argument("--fixed-size", help="fix the input's height and width", **flag)
    parser.add_argument("--repo", help="hub: OWNER/NAME of the repository")
    parser.add_argument("--private", help="hub: make a new repository private", **flag)
    given = parser.parse_args(args)
    complete_options(given, given.to, OPTIONS, "--to {}")
    if given.to == "hub" and given.repo is None:
        raise UsageError("--to hub needs --repo OWNER/NAME")
    network = open_network(given)
    check_finite(network.net.state_dict())
    if given.to == "hub":
        return _push(network, given)
    base = Path(given.model).name.replace(":", "_")
    out = given.out or Path(f"{base}{TARGETS.get(given.to, '')}")
    check_destination(out, folder=given.to == "safetensors")
    about, size = {"name": network.name, **_described(network)}, network.image_size
    if given.to == "safetensors":
        values = network.label_values
        report = export_folder(network.net, out, image_size=size, label_values=values, **about)
    else:
        fixed = given.fixed_size
        report = export_model(
            network.net, out, target=given.to, image_size=size, fixed_size=fixed, **about
        )
    _show(report, out)
    return 0


def _described(network: Network) -> dict[str, Any]:
    """Additional information for users of the weights."""
    return {
        "label_names": network.label_names,
        "data_config": network.data_config,
        "preprocessing": network.preprocessing,
    }


def _push(network: Network, given: Namespace) -> int:
    from vimamba.hub import push_to_hub

    about = {"label_values": network.label_values, **_described(network)}
    address = push_to_hub(network.net, given.repo, private=given.private, **about)
    say(f"pushed to {address}")
    return 0


def _show(report: Report, out: Path) -> None:
    """Print what was written and checked."""
    size = " x ".join(str(size) for size in report.input)
    rows = [
        [" x ".join(map(str, check.shape)), f"{check.difference:.1e}", f"{check.relative:.1e}"]
        for check in report.checks
    ]
    head = ["input tried", "largest difference", "over largest output"]
    show_table(f"{report.model} to {report.target}: input {size}", head, rows)
    for note in report.notes:
        say(f"note: {note}")
    say(f"written to {out}, with the report in {out}.json")
