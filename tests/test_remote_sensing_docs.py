"""Every command and snippet of docs/remote_sensing.md runs."""

import json

import numpy as np
import rasterio
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


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(6):
        write_scene(tmp_path / "land", f"{number}.tif", rng, labels=True)
    write_scene(tmp_path / "new", "a.tif", rng)
    write_scene(tmp_path / "new", "b.tif", rng, shift=30)
    monkeypatch.chdir(tmp_path)
    commands = [c for c in find_commands(read(PAGE)) if not c.startswith(SETUP)]
    assert len(commands) == 3
    for command in commands:
        argv = shortened(command)
        if argv[0] == "fit":
            argv += ["--img-size", "32", "--workers", "0", "--data.tile", "48", "--model.head"]
            argv += ["unet", "--model.model_kwargs", SMALL]
        assert main(argv) == 0, command
    with rasterio.open("maps/a.tif") as file, rasterio.open("new/a.tif") as scene:
        assert (file.crs, file.transform) == (scene.crs, scene.transform)
        np.testing.assert_array_equal(file.read(1) == 255, scene.read(1) == 0)
    report = json.loads((tmp_path / "runs" / "land" / "metrics.json").read_text())["test"]
    # four tiles of 48 x 48 in each scene; what nothing is known of is no pixel of a score
    assert report["images"] % 4 == 0
    scored = sum(row["pixels"] for row in report["per_class"])
    assert scored == report["images"] // 4 * (4 * 48 * 48 - 15 * 20)
    for snippet in find_snippets(read(PAGE)):
        exec(compile(snippet, PAGE, "exec"), {"__name__": "__main__"})
    with rasterio.open("changes.tif") as file:
        changed = file.read(1)
    assert (changed[:15] == 255).any()
    assert (changed[25:35, 31:33] == 1).all()  # b lies three pixels farther east
    assert (changed[25:35, 50:80] == 0).all()


def test_the_page_links_to_files_that_exist():
    assert find_missing_links(read(PAGE), (ROOT / PAGE).parent) == []
