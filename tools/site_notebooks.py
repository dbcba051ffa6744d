"""Outputs of the notebooks in docs/notebooks, which are stored without, for the site."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from site_pages import ROOT

from vimamba.files import write_whole

RUN = ROOT / "build" / "notebooks"
TIMEOUT = 600  # seconds a cell may take
# the first cell: a command prints what it prints without a terminal, and if it fails the cell fails
COMMANDS = """
import os
import subprocess

os.environ.pop("FORCE_COLOR", None)


def run(command):
    done = subprocess.run(command, shell=True, check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")


get_ipython().system = run
"""


def read_with_outputs(path: Path) -> str:
    """The notebook's JSON with outputs, from build/notebooks unless the notebook has changed."""
    kept = RUN / path.name
    if not kept.exists() or kept.stat().st_mtime < path.stat().st_mtime:
        with TemporaryDirectory() as folder:
            notebook = run_notebook(path, Path(folder))
        with write_whole(kept) as part:
            nbformat.write(notebook, part)
    return kept.read_text(encoding="utf-8")


def run_notebook(path: Path, folder: Path) -> NotebookNode:
    """The notebook with outputs, run with this interpreter and this checkout.

    Args:
        path: The notebook.
        folder: Where it runs and writes temporary files.

    Raises:
        CellExecutionError: A cell fails, or a command in it.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(COMMANDS))
    places = {"PATH": [Path(sys.executable).parent], "PYTHONPATH": [ROOT, ROOT / "kernels"]}
    env = {**os.environ, "TMPDIR": str(folder)}
    for name, first in places.items():
        env[name] = os.pathsep.join([*map(str, first), *filter(None, [os.environ.get(name)])])
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=env)
    del notebook.cells[0]
    return notebook
