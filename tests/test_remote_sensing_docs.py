"""Every command and snippet of docs/remote_sensing.md runs."""

import importlib.util
import json

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from tests.documents import (
    ROOT,
    SETUP,
    find_commands,
    find_missing_links,
    find_snippets,
    read,
    shortened,
)
from tests.rasters import write_raster
from vimamba.cli import main
from vimamba.data.masked.aerial import ISPRS

PAGE = "docs/remote_sensing.md"
SMALL = "{depths: [1, 1, 1, 1], dims: [8, 16, 24, 32]}"


def write_scene(folder, name, rng, *, labels=False, shift=0):
    values = np.zeros((70, 90), dtype=np.uint8)
    values[20:40, 30:] = 1
    pixels = rng.integers(300, 500, (70, 90, 4)) + 1500.0 * values[..., None]
    pixels[:15, :20] = 0
    place = {"transform": from_origin(500_000 + shift, 5_000_000, 10, 10)}
    image = folder / "images" if labels else folder
    write_raster(image / name, pixels.astype(np.uint16), nodata=0, **place)
    if labels:
        write_raster(folder / "masks" / name, values, **place)


def write_potsdam(folder, rng):
    """Two training and two test images, with squares of all classes."""
    colors = np.asarray(list(ISPRS.values()), dtype=np.uint8)
    for name in ("2_10", "2_11", "2_13", "2_14"):
        truth = np.kron(rng.permutation(16).reshape(4, 4) % 6, np.ones((16, 16), dtype=int))
        label, noise = colors[truth], rng.integers(0, 90, (64, 64, 3))
        for kind, pixels in (("RGB", label // 2 + noise), ("label", label)):
            path = folder / f"{kind}s" / f"top_potsdam_{name}_{kind}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(6):
        write_scene(tmp_path / "land", f"{number}.tif", rng, labels=True)
    write_scene(tmp_path / "new", "a.tif", rng)
    write_scene(tmp_path / "new", "b.tif", rng, shift=30)
    write_potsdam(tmp_path / "potsdam", rng)
    monkeypatch.chdir(tmp_path)
    commands = [c for c in find_commands(read(PAGE)) if not c.startswith(SETUP)]
    assert len(commands) == 5
    for command in commands:
        argv = shortened(command)
        if argv[0] == "fit":
            argv += ["--img-size", "32", "--workers", "0", "--data.tile", "48", "--model.head"]
            argv += ["unet", "--model.model_kwargs", SMALL]
        if "-c" in argv:
            argv += ["--model.pretrained", "false", "--precision", "32-true"]
        assert main(argv) == 0, command
    with rasterio.open("maps/a.tif") as file, rasterio.open("new/a.tif") as scene:
        assert (file.crs, file.transform) == (scene.crs, scene.transform)
        np.testing.assert_array_equal(file.read(1) == 255, scene.read(1) == 0)
    report = json.loads((tmp_path / "runs" / "land" / "metrics.json").read_text())["test"]
    # four tiles of 48 x 48 in each scene; nodata pixels are not scored
    assert report["images"] % 4 == 0
    scored = sum(row["pixels"] for row in report["per_class"])
    assert scored == report["images"] // 4 * (4 * 48 * 48 - 15 * 20)
    potsdam = json.loads((tmp_path / "runs" / "potsdam" / "metrics.json").read_text())["test"]
    assert (potsdam["left_out"], potsdam["border"]) == (["clutter"], 3)
    # of four tiles of 48 x 48 in each of two images; of squares of 16, borders are a third and more
    assert 0 < sum(row["pixels"] for row in potsdam["per_class"]) < 0.75 * 8 * 48 * 48
    for snippet in find_snippets(read(PAGE)):
        if "torchgeo" in snippet and importlib.util.find_spec("torchgeo") is None:
            continue
        exec(compile(snippet, PAGE, "exec"), {"__name__": "__main__"})
    with rasterio.open("changes.tif") as file:
        changed = file.read(1)
    assert (changed[:15] == 255).any()
    assert (changed[25:35, 31:33] == 1).all()  # b is three pixels farther east
    assert (changed[25:35, 50:80] == 0).all()


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(read(PAGE), (ROOT / PAGE).parent) == []
