"""What the documents show: commands and snippets, to be run by tests."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
# these set up a machine: a slow test of their own, and CI, run them
SETUP = ("pip install", "make ")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def find_snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def find_commands(text: str) -> list[str]:
    return re.findall(r"^\$ (.*?)(?:  +#.*)?$", text, re.MULTILINE)


def find_missing_links(text: str, folder: Path) -> list[str]:
    """Links to files that do not exist."""
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)
    paths = re.findall(r"`((?:tests|configs|tools)/\S+\.\w+)`", text)
    missing = [link for link in links if not (folder / link).exists()]
    return missing + [path for path in paths if not (ROOT / path).exists()]


def shortened(command: str) -> list[str]:
    """The command's arguments; a training is cut to one epoch of a few images."""
    argv = shlex.split(command)
    assert argv[0] == "vimamba", command
    return argv[1:] + (["--epochs", "1", "--batch-size", "4"] if argv[1] == "fit" else [])
