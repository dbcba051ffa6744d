"""The Triton kernels in Triton's interpreter, which needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("operator", ["selective_scan", "path_conv", "ssd", "mamba3"])
def test_kernels_match_the_definition_in_the_interpreter(operator):
    pytest.importorskip("triton")
    path = f"tests/kernels/interpreted/check_{operator}.py"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
