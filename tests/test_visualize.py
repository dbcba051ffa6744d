import builtins
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from vimamba.scan_orders import list_scan_orders
from vimamba.visualize import draw_gallery, draw_scan_order

pytestmark = pytest.mark.draws

image = pytest.importorskip("matplotlib.image")


def read(path: Path) -> torch.Tensor:
    """(H, W, RGBA) in [0, 1]."""
    return torch.tensor(image.imread(path))


@pytest.mark.parametrize(
    ("order", "grid"),
    [
        ("hilbert", (14, 14)),
        ("raster", (1, 1)),
        ("spiral", (1, 20)),
        ("cross", (20, 1)),
        ("atrous(step=2)", (1, 1)),
        ("local(window=4)", (5, 6)),
        ("omni", (8, 8)),
        ("morton", (64, 64)),
        ("bidirectional", (9,)),
        ("windows(size=2) + interslice", (3, 5, 2)),
        ("cross", (12, 3, 3)),
    ],
)
def test_every_grid_becomes_a_readable_picture(tmp_path, order, grid):
    path = draw_scan_order(order, grid, tmp_path / "new" / "scan.png")
    assert path == tmp_path / "new" / "scan.png"
    picture = read(path)
    assert 300 <= picture.shape[0] <= 2500
    assert 600 <= picture.shape[1] <= 2500
    assert picture[..., :3].std() > 0.02


def test_paths_stand_side_by_side(tmp_path):
    one = read(draw_scan_order("raster", (8, 8), tmp_path / "one.png"))
    four = read(draw_scan_order("cross", (8, 8), tmp_path / "four.png"))
    eight = read(draw_scan_order("omni", (8, 8), tmp_path / "eight.png"))
    assert four.shape[1] > 2 * one.shape[1]
    assert four.shape[0] == one.shape[0]
    assert eight.shape[1] == four.shape[1]
    assert eight.shape[0] > 1.4 * four.shape[0]


def test_first_and_last_steps_wear_the_ends_of_the_palette(tmp_path):
    picture = read(draw_scan_order("raster", (4, 4), tmp_path / "scan.png"))[..., :3]
    height, width = picture.shape[:2]
    grid = picture[height // 5 : -height // 5, :]
    for color in (0x1F2A6B, 0xF79C2D):
        rgb = torch.tensor([color >> 16, color >> 8 & 255, color & 255]) / 255
        rows, cols = ((grid - rgb).abs().amax(-1) < 0.01).nonzero().T
        at_start = color == 0x1F2A6B
        assert bool(rows.float().mean() < grid.shape[0] / 2) == at_start
        assert bool(cols.float().median() < width / 2) == at_start


def test_the_slices_of_a_volume_lie_below_each_other(tmp_path):
    """The first step is in the top slice, the last in the bottom slice."""
    picture = read(draw_scan_order("raster", (4, 3, 3), tmp_path / "scan.png"))[..., :3]
    grid = picture[picture.shape[0] // 10 : -picture.shape[0] // 8]
    rows = []
    for color in (0x1F2A6B, 0xF79C2D):
        rgb = torch.tensor([color >> 16, color >> 8 & 255, color & 255]) / 255
        rows.append(((grid - rgb).abs().amax(-1) < 0.01).nonzero()[:, 0].float().mean())
    assert rows[0] < grid.shape[0] / 4
    assert rows[1] > 3 * grid.shape[0] / 4


def test_gallery_shows_all_orders(tmp_path):
    picture = read(draw_gallery(tmp_path / "gallery.png"))
    assert 1500 <= picture.shape[1] <= 2200
    assert picture.shape[0] > 60 * len(list_scan_orders(dims=2))


@pytest.mark.parametrize(
    ("order", "size", "name", "message"),
    [
        ("qqqq", (4, 4), "a.png", "'qqqq' is unknown; choose from"),
        ("cross", (0, 4), "a.png", r"grid=\(0, 4\)"),
        ("raster", (2, 2, 2, 2), "a.png", "4 axes; up to 3 can be drawn"),
        ("cross", (4, 4), "a.nonsense", "nonsense"),
    ],
)
def test_refused_pictures_leave_nothing_behind(tmp_path, order, size, name, message):
    with pytest.raises(ValueError, match=message):
        draw_scan_order(order, size, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_drawing_keeps_the_old_picture(tmp_path, monkeypatch):
    path = draw_scan_order("cross", (3, 3), tmp_path / "scan.png")
    before = path.read_bytes()

    def break_off(self, target, **options):
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", break_off)
    with pytest.raises(KeyboardInterrupt):
        draw_scan_order("raster", (3, 3), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_matplotlib_is_explained(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ImportError, match=r'pip install "vimamba\[train\]"'):
        draw_scan_order("cross", (3, 3), tmp_path / "scan.png")


def test_gallery_tool_writes_the_readme_pictures(tmp_path, monkeypatch, capsys):
    source = Path(__file__).parents[1] / "tools" / "gallery.py"
    specification = importlib.util.spec_from_file_location("gallery", source)
    assert specification is not None
    assert specification.loader is not None
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["gallery.py", str(tmp_path)])
    tool.main()
    written = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert written == ["scan_orders.png", "scan_hilbert.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written)
