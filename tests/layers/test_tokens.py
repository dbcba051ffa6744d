"""Token grids: resampled as by torch, and paths with prefix tokens."""

import pytest
import torch
import torch.nn.functional as F

import vimamba
from vimamba.layers import insert_into_paths
from vimamba.layers.resample_tokens import resample_tokens


@pytest.mark.parametrize("old", [(6, 6), (5, 9), (14, 14)], ids=str)
@pytest.mark.parametrize("new", [(3, 20), (28, 7), (1, 1), (6, 14)], ids=str)
@pytest.mark.parametrize("antialias", [True, False])
def test_resampled_tokens_equal_torchs_bicubic(old, new, antialias):
    tokens = torch.randn(2, old[0] * old[1], 8)
    grid = tokens.double().unflatten(1, old).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=new, mode="bicubic", antialias=antialias)
    expected = expected.permute(0, 2, 3, 1).flatten(1, 2)
    # the weights are float32
    torch.testing.assert_close(
        resample_tokens(tokens, old, new, antialias).double(), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("antialias", [True, False])
def test_the_same_grid_is_kept_bit_for_bit(antialias):
    tokens = torch.randn(1, 63, 8)
    assert torch.equal(resample_tokens(tokens, (7, 9), (7, 9), antialias), tokens)


def test_tokens_keep_their_dtype():
    tokens = torch.randn(1, 16, 8, dtype=torch.bfloat16)
    assert resample_tokens(tokens, (4, 4), (2, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize("length", [2, 5, 6, 7])
@pytest.mark.parametrize("front", [False, True])
def test_the_class_token_keeps_a_path_and_its_reverse_mirrored(length, front):
    path = torch.arange(length)
    position = 0 if front else length // 2
    forward, backward = insert_into_paths(torch.stack([path, path.flip(0)]), [position], length)
    assert torch.equal(forward, torch.arange(length + 1))
    assert torch.equal(backward, forward.flip(0))


@pytest.mark.parametrize(
    ("path", "position", "expected"),
    [
        # local(window=2) on 3x3: a grid's first token first, and zero tokens at the end
        ([0, 1, 3, 4, 2, -1, -1], 0, [0, 1, 2, 4, 5, 3, -1, -1]),
        ([0, 1, 3, 4, 2, -1, -1], 2, [0, 1, 2, 4, 5, 3, -1, -1]),
        ([2, -1, 0, -1], 0, [3, -1, 1, -1, 0]),
        ([-1, 0, -1, 1, 2, 3, -1], 2, [-1, 0, -1, 1, 2, 3, 4, -1]),
    ],
)
def test_zero_tokens_say_nothing_about_the_way_of_a_path(path, position, expected):
    count = max(path) + 1
    found = insert_into_paths(torch.tensor([path]), [position], count)
    assert found.tolist() == [expected]
    mirrored = insert_into_paths(torch.tensor([path[::-1]]), [position], count)
    assert mirrored.tolist() == [expected[::-1]]


def test_registers_keep_a_path_and_its_reverse_mirrored():
    path = torch.arange(8)
    forward, backward = insert_into_paths(torch.stack([path, path.flip(0)]), [2, 5, 8], 8)
    assert torch.equal(forward, torch.arange(11))
    assert torch.equal(backward, forward.flip(0))


def test_the_class_token_is_visited_once_by_every_path():
    paths = vimamba.scan_paths("omni", 3, 5)
    with_token = insert_into_paths(paths, [7], 15)
    assert torch.equal(with_token.sort(1).values, torch.arange(16).expand(len(paths), -1))
    nothing = torch.tensor([[-1, -1]])
    assert insert_into_paths(nothing, [0], 1).tolist() == [[0, -1, -1]]


def test_registers_stay_in_their_order_on_paths_that_leave_out_most_tokens():
    # two of eight cells, the others are in another path: both registers after the first cell
    paths = torch.tensor([[1, 6], [6, 1]])
    assert insert_into_paths(paths, [4, 5], 8).tolist() == [[1, 4, 5, 8], [8, 5, 4, 1]]
