import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_reaches_97_percent_and_says_what_to_try_next(tmp_path):
    demo = [sys.executable, str(ROOT / "tools" / "demo.py")]
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, check=True)
    words = done.stdout[done.stdout.index("Test accuracy ") :].split()
    assert float(words[2].rstrip("%")) >= 97
    assert "predict demo/run demo/digits/7" in done.stdout
    assert (tmp_path / "demo" / "run" / "export" / "model.safetensors").exists()
