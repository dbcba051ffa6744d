"""`vimamba convert`: an official checkpoint under our names, as a file or a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vimamba.checkpoints import Identity
from vimamba.cli.inquiries import check_destination, make_parser
from vimamba.console import say
from vimamba.errors import UsageError

HELP = """\
Writes the weights of an official or training checkpoint under vimamba's names. The model is
identified from names and shapes; --model is needed if several models share them.

  vimamba convert vssm1_tiny_0230s_ckpt_epoch_264.pth --out model.safetensors
  vimamba convert vim_t_midclstok_76p1acc.pth --out vim_tiny    a folder, for transformers as well
"""


def convert(args: list[str]) -> int:
    """Convert a checkpoint; returns the exit code."""
    parser = make_parser("convert", HELP)
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--out", type=Path, required=True, help="a file NAME.safetensors, or a folder"
    )
    parser.add_argument("--model", metavar="NAME", help="registered name (vimamba list-models)")
    given = parser.parse_args(args)
    if not given.file.is_file():
        raise UsageError(f"{given.file} is not a file")
    to_file = given.out.suffix == ".safetensors"
    if not to_file and given.out.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise UsageError(f"--out {given.out} must end in .safetensors, or name a folder")
    check_destination(given.out, folder=not to_file)
    if given.out.exists() and given.out.samefile(given.file):
        raise UsageError(f"--out {given.out} is the file to convert; choose another")

    import vimamba  # registers the models
    from vimamba.checkpoints import identify_checkpoint, read_checkpoint

    checkpoint = read_checkpoint(given.file)
    found = choose(identify_checkpoint(checkpoint, given.file), given.model)
    say(f"{given.file} is {found.variant}, {found.family}")
    if to_file:
        write_weights(checkpoint, found, given.out)
        lines = [found.line(given.out)]
    else:
        try:
            vimamba.save_pretrained(found.load(given.file), given.out)
        except ValueError as error:
            raise UsageError(str(error)) from error
        lines = [found.folder_line(given.out)]
        if found.accuracy and found.num_classes:
            auto = "transformers.AutoModelForImageClassification"
            lines.append(f'{auto}.from_pretrained("{given.out}")')
    say(f"written to {given.out}; after `import vimamba`, load it with")
    for line in lines:
        say(f"  {line}")
    return 0


def choose(found: Identity, model: str | None) -> Identity:
    """Choose the model of a file among those that fit its names and shapes.

    Args:
        found: The result of identification.
        model: Registered name that the user gives.

    Raises:
        UsageError: The file does not hold that model, or several models fit.
    """
    candidates = [found, *found.others]
    matching = [one for one in candidates if model in (None, one.variant)]
    if not matching:
        raise UsageError(f"--model {model} does not fit the file, which is {found}")
    if len(matching) == 1:
        return matching[0]
    if len({one.variant for one in matching}) > 1:
        raise UsageError(f"--model NAME is needed: the file may be {found}")
    ways = "; ".join(str(one.all_arguments) for one in matching)
    raise UsageError(f"the file fits {matching[0].variant} with several arguments: {ways}")


def write_weights(checkpoint: Mapping[str, Any], found: Identity, out: Path) -> None:
    """Write weights under our names, otherwise unchanged.

    Raises:
        CheckpointError: The weights are not finite.
        WriteError: The disk is full, the folder is not writable, or similar.
    """
    from safetensors.torch import save_file

    from vimamba.files import write_whole

    state = found.read_weights(checkpoint)
    whole = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()
    }
    with write_whole(out) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(whole, part, metadata={"format": "pt", "architecture": found.variant})
        part.chmod(mode)  # safetensors makes it readable by the owner only
