"""`tools/pathfinder.py`: separate curves, and classes that differ only in a curve."""

import numpy as np
import pathfinder
import pytest
from PIL import Image


def scenes(same, count=30):
    return [
        pathfinder.make_scene(np.random.default_rng([0, number]), 32, 6, 2, same=same)
        for number in range(count)
    ]


def ends(curve):
    return curve[0, 0], curve[-1, 1]


def test_discs_lie_at_ends_of_one_curve_or_of_two():
    for same in (False, True):
        for scene in scenes(same, count=10):
            first, second = scene.curves[:2]
            np.testing.assert_array_equal(scene.discs[0], ends(first)[0])
            holds = [any((scene.discs[1] == end).all() for end in ends(c)) for c in (first, second)]
            assert holds == [same, not same]


def test_curves_keep_apart_and_inside():
    for scene in scenes(same=True, count=10):
        assert [len(curve) for curve in scene.curves] == [6, 6, 2, 2]
        points = [pathfinder.along(curve) for curve in scene.curves]
        for place, one in enumerate(points):
            assert one.min() > 0
            assert one.max() < 32
            for other in points[:place]:
                gaps = np.linalg.norm(one[:, None] - other, axis=-1)
                assert gaps.min() >= pathfinder.CLEARANCE


def test_distance_and_brightness_do_not_tell_the_classes_apart():
    apart, bright = {}, {}
    for same in (False, True):
        found = scenes(same)
        apart[same] = [np.linalg.norm(scene.discs[1] - scene.discs[0]) for scene in found]
        bright[same] = [np.asarray(pathfinder.draw_scene(scene, 32)).mean() for scene in found]
    # the scenes are the same, so their means differ at most by the allowed distance
    assert abs(np.mean(apart[True]) - np.mean(apart[False])) < 1
    assert np.mean(bright[True]) == pytest.approx(np.mean(bright[False]), rel=0.02)


def test_the_same_arguments_write_the_same_files(tmp_path):
    args = ["--count", "3", "--size", "24", "--dashes", "3", "--distractors", "1"]
    for name in ("one", "two"):
        assert pathfinder.main([str(tmp_path / name), *args]) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    assert [str(file) for file in files] == [
        f"{name}/{number:05}.png" for name in ("different", "same") for number in range(3)
    ]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        with Image.open(tmp_path / "one" / file) as picture:
            assert picture.size == (24, 24)
    with pytest.raises(SystemExit, match="do not fit"):
        pathfinder.main([str(tmp_path / "full"), "--size", "16", "--dashes", "40", "--count", "1"])
