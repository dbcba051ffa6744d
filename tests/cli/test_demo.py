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


@pytest.mark.slow
def test_the_demo_of_segmentation_beats_a_threshold_clearly(tmp_path):
    demo = [sys.executable, str(ROOT / "tools" / "demo_segmentation.py")]
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, check=True)
    means = {line[:20].strip(): float(line.split()[-2]) for line in done.stdout.splitlines()
             if line.strip().startswith(("Otsu", "VM-UNet"))}  # fmt: skip
    assert means["VM-UNet"] > 0.94
    assert means["VM-UNet"] > means["Otsu, light evened"] + 0.08
    assert (tmp_path / "demo" / "nuclei_run" / "samples.png").exists()


@pytest.mark.slow
def test_the_demo_of_change_beats_the_best_threshold_and_its_maps_lie_where_the_scenes_lie(
    tmp_path,
):
    demo = [sys.executable, str(ROOT / "tools" / "demo_change.py")]
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, check=True)
    scores = {line[:22].strip(): float(line.split()[-1]) for line in done.stdout.splitlines()
              if line.strip().startswith(("image differencing", "small VMamba"))}  # fmt: skip
    assert scores["small VMamba"] > scores["image differencing"] + 0.2
    assert "000.tif: EPSG:32633, transform (2, 0, 4" in done.stdout
    assert (tmp_path / "demo" / "growth_run" / "samples.png").exists()
