"""docs/integrations.md: its snippets run, and every row of its table is backed by a test."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vimamba.hub
from tests.test_hub import Hub

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
SECTIONS = [section.split("\n", 1) for section in TEXT.split("\n## ")[1:]]
SNIPPETS = [
    (tool, snippet)
    for tool, text in SECTIONS
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]
ROWS = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")][1:]
PACKAGES = {
    "Hugging Face Hub": "huggingface_hub",
    "Lightning": "pytorch_lightning",
    "nnU-Net": "nnunetv2",
}


@pytest.mark.parametrize(("tool", "snippet"), SNIPPETS, ids=[tool for tool, _ in SNIPPETS])
def test_a_snippet_runs(tool, snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vimamba.hub, "HfApi", Hub)  # only the upload is skipped
    exec(compile(snippet, f"{tool} in integrations.md", "exec"), {"__name__": "__main__"})


def test_every_python_block_is_run():
    assert len(SNIPPETS) == TEXT.count("```python")


REQUIREMENTS = [Requirement(line) for line in importlib.metadata.requires("vimamba") or ()]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_names_its_test_and_a_version_that_may_be_installed_beside_vimamba(row):
    tool, version, _, _, test = row
    assert (ROOT / test.strip("`")).is_file()
    package = PACKAGES.get(tool, tool.split("'")[0])
    assert importlib.metadata.version(package)
    wanted = [
        r.specifier for r in REQUIREMENTS if canonicalize_name(r.name) == canonicalize_name(package)
    ]
    assert all(version in specifier for specifier in wanted)
