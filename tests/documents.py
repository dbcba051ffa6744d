"""Commands and snippets of the documents, to be run by tests."""

import re
import shlex
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
# these set up a machine; a separate slow test and CI run them
SETUP = ("pip install", "make ")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def find_snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def find_commands(text: str) -> list[str]:
    return re.findall(r"^\$ (.*?)(?:  +#.*)?$", text, re.MULTILINE)


def write_photos(folder: Path, names: list[str], *, size: tuple[int, int] = (40, 52)) -> None:
    """Dark cats and bright dogs, in folders of these names."""
    rng = np.random.default_rng(0)
    for animal, color in (("cat", 60), ("dog", 190)):
        (folder / animal).mkdir(parents=True)
        for name in names:
            pixels = rng.normal(color, 30, (*size, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / animal / name)


def find_missing_links(text: str, folder: Path) -> list[str]:
    """Links to files or headings that do not exist."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    missing = []
    for link, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", prose):
        target = folder / link
        if not target.exists():
            missing.append(link)
        elif anchor and anchor not in find_anchors(target.read_text("utf-8") if link else text):
            missing.append(f"{link}#{anchor}")
    paths = re.findall(r"`((?:tests|configs|tools)/\S+\.\w+)`", text)
    return missing + [path for path in paths if not (ROOT / path).exists()]


def find_anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, which are the same on GitHub and in MkDocs."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def shortened(command: str) -> list[str]:
    """The command's arguments; a training is shortened to one epoch of a few images."""
    argv = shlex.split(command)
    assert argv[0] == "vimamba", command
    return argv[1:] + (["--epochs", "1", "--batch-size", "4"] if argv[1] == "fit" else [])
