"""The notebooks run from top to bottom, are stored without outputs and shown with them."""

import base64
import json
from pathlib import Path

import pytest

from tests.documents import ROOT
from tools.site_pages import notebook_page, notebook_pictures

pytestmark = pytest.mark.draws

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def run(path: Path, folder: Path) -> dict:
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package)
    from tools.site_notebooks import run_notebook

    return run_notebook(path, folder)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    notebook = run(path, tmp_path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert [cell.source for cell in notebook.cells] == ["".join(cell["source"]) for cell in cells]
    assert notebook_pictures(json.dumps(notebook), path.name)


@pytest.mark.slow
def test_a_failing_command_stops_a_notebook(tmp_path):
    path = tmp_path / "fails.ipynb"
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": []}
    cell["source"] = "!echo before\n!exit 3\nprint('after')"
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))
    with pytest.raises(Exception, match="exit status 3") as error:
        run(path, tmp_path)
    assert type(error.value).__name__ == "CellExecutionError"


def test_a_page_shows_the_outputs_of_a_notebook():
    png = base64.b64encode(b"picture").decode()
    outputs = [
        {"output_type": "stream", "name": "stderr", "text": ["a warning\n"]},
        {"output_type": "stream", "name": "stdout", "text": ["epoch 1\n", "epoch 2\n"]},
        {"output_type": "display_data", "data": {"image/png": png, "text/plain": ["<Figure>"]}},
        {"output_type": "execute_result", "data": {"text/plain": ["(2, 3)"]}},
        {"output_type": "execute_result", "data": {"text/markdown": ["# Report\n", "text"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ["run()"], "outputs": outputs},
    ]
    text = json.dumps({"cells": cells})
    ((place, content),) = notebook_pictures(text, "a.ipynb").items()
    assert content == b"picture"
    expected = f"""# Title

[This notebook on GitHub](https://example.org/blob/main/docs/notebooks/a.ipynb)

```python
run()
```

``` {{.text .output}}
epoch 1
epoch 2
```

![Output of the cell above]({place.removeprefix("notebooks/")}){{ .output }}

``` {{.text .output}}
(2, 3)
```

**Report**
text
"""
    assert notebook_page(text, "a.ipynb", "https://example.org") == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert cells[0]["source"][0].startswith("# ")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
