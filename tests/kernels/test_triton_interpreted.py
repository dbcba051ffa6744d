"""The Triton kernels in Triton's interpreter, which needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# by default the simulator runs the compiled kernels of the other two
@pytest.mark.parametrize(
    "operators",
    [("selective_scan", "path_conv"), pytest.param(("ssd", "mamba3"), marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_kernels_match_the_definition_in_the_interpreter(operators):
    run("not slow", *operators)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("operator", ["selective_scan", "path_conv", "ssd"])
def test_kernels_match_the_definition_in_more_cases(operator):
    run("slow", operator)


def run(marked, *operators):
    pytest.importorskip("triton")
    paths = [f"tests/kernels/interpreted/check_{operator}.py" for operator in operators]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", marked]
    command = [sys.executable, "-m", "pytest", *options, *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
