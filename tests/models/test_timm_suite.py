"""timm's own model tests, unmodified, on the test models of every family.

They are in timm's source distribution, which `tools/timm_suite.py` downloads.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.versions import outside

ROOT = Path(__file__).parents[2]


@pytest.mark.xfail(
    outside("timm", "1.0.31", "1.0.31"), reason="a timm with tests not seen yet", strict=False
)
@pytest.mark.slow
def test_timms_own_tests_pass(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "timm_suite.py")]
    options = ["--package", "vimamba", "--fetch", "--report", str(tmp_path / "report.json")]
    options += ["--select", "all", "--models=test_*"]
    # a separate process, even if these tests run in several
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    run = subprocess.run(command + options, cwd=tmp_path, env=alone, capture_output=True, text=True)
    if "'download'" in run.stderr:
        pytest.skip("PyPI cannot be reached for timm's source distribution")
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 0 failed, 0 skipped" in run.stdout
