"""An order computed by a model from its input: tokens by a learned score, for each image."""

import re

import pytest
import torch
from torch import nn

from vimamba.layers import SS2D
from vimamba.layers.mamba import MambaMixer
from vimamba.layers.ss2d import SSD2D
from vimamba.layers.tokens import insert_into_paths
from vimamba.models.mobilemamba import ConvSS2D
from vimamba.models.spatialmamba import FusedScan


class SortedMixer(nn.Module):
    """Mix in order of decreasing score and back; each token's output is weighted by its score."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer
        self.score = nn.Linear(8, 1)

    def forward(self, x):
        score = self.score(x)
        order = score.flatten(1).argsort(dim=1, descending=True, stable=True)
        return x + score.sigmoid() * self.mixer(x, torch.stack([order, order.flip(1)], dim=1))


def make(mixer=SS2D):
    torch.manual_seed(0)
    return SortedMixer(mixer(8, scan_order="bidirectional", d_state=2)), torch.randn(3, 5, 7, 8)


@pytest.mark.parametrize("mixer", [SS2D, SSD2D])
def test_every_image_is_mixed_along_its_own_order(mixer):
    model, x = make(mixer)
    y = model(x)
    for i in range(3):
        torch.testing.assert_close(model(x[i : i + 1]), y[i : i + 1])
    # with a name, the mixer still uses its own order
    assert not torch.allclose(model.mixer(x), (y - x) / model.score(x).sigmoid())


@pytest.mark.parametrize("mixer", [SS2D, SSD2D])
def test_given_paths_win_over_the_name(mixer):
    model, x = make(mixer)
    order = torch.arange(35)
    paths = torch.stack([order, order.flip(0)])
    torch.testing.assert_close(model.mixer(x, paths), model.mixer(x))
    by_image = paths.flip(1).expand(3, -1, -1)
    torch.testing.assert_close(model.mixer(x, by_image), model.mixer(x, paths.flip(1)))


@pytest.mark.parametrize("make_mixer", [SS2D, SSD2D, FusedScan, ConvSS2D])
@pytest.mark.parametrize(
    ("paths", "error", "message"),
    [
        ("hilbert", TypeError, "paths is str; expected a tensor, (K, T) or (B, K, T)"),
        ([[0, 1], [1]], TypeError, "paths is list; expected a tensor, (K, T) or (B, K, T)"),
        (torch.rand(2, 12), TypeError, "paths is torch.float32; expected torch.int32 or"),
        (torch.arange(12), ValueError, "paths has shape (12,); expected (K, T) = (2, T >= 1)"),
        (torch.arange(12).expand(3, 2, 12), ValueError, "or (B, K, T) = (1, 2, T >= 1)"),
        (torch.arange(1, 13).expand(2, 12), ValueError, "from 1 to 12; expected [-1, 12)"),
        (torch.zeros(2, 3).long(), ValueError, "paths[0] visits token 0 again"),
    ],
    ids=["name", "list", "fractions", "one_path", "other_batch", "outside", "twice"],
)
def test_wrong_paths_are_refused(make_mixer, paths, error, message):
    channels_first = make_mixer is ConvSS2D
    options = {"expand": 2.0} if channels_first else {}
    mixer = make_mixer(8, scan_order="bidirectional", **options)
    x = torch.randn((1, 8, 3, 4) if channels_first else (1, 3, 4, 8))
    with pytest.raises(error, match=re.escape(message)):
        mixer(x, paths)


def test_it_trains_and_the_score_learns():
    """The target is the mean of the token with the largest first channel, at every token."""
    model, _ = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        x = torch.randn(4, 3, 3, 8)
        tokens = x.flatten(1, 2)
        best = tokens[torch.arange(4), tokens[..., 0].argmax(1)].mean(1)
        loss = (model(x).mean(-1) - best[:, None, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert model.score.weight.grad.abs().max() > 0
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_class_token_joins_the_paths_of_every_image():
    torch.manual_seed(0)
    mixer = MambaMixer(8, d_state=2)
    x = torch.randn(2, 6, 8)
    paths = torch.stack([torch.randperm(5) for _ in range(4)]).unflatten(0, (2, 2))
    with_token = insert_into_paths(paths, [2], 5)
    y = mixer(x, with_token)
    for i in range(2):
        table = insert_into_paths(paths[i], [2], 5)
        assert torch.equal(with_token[i], table)
        torch.testing.assert_close(mixer(x[i : i + 1], table), y[i : i + 1])


def test_a_compiled_model_gives_the_same_in_one_graph():
    model, x = make()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for images in (x, torch.randn(2, 4, 6, 8)):
        torch.testing.assert_close(compiled(images), model(images))
    grads = [torch.autograd.grad(m(x).sum(), model.parameters()) for m in (model, compiled)]
    torch.testing.assert_close(*grads)


def test_a_scripted_mixer_takes_paths():
    model, x = make()
    paths = torch.stack([torch.randperm(35) for _ in range(6)]).unflatten(0, (3, 2))
    scripted = torch.jit.script(model.mixer)
    torch.testing.assert_close(scripted(x, paths), model.mixer(x, paths))
    torch.testing.assert_close(scripted(x), model.mixer(x))


def test_exported_files_sort_each_image_on_its_own(tmp_path):
    model, x = make()
    model = model.eval()
    names = {0: "batch", 1: "height", 2: "width"}
    sizes = {i: torch.export.Dim(name, min=2) for i, name in names.items()}
    program = torch.export.export(model, (x,), dynamic_shapes=(sizes,))
    onnx_file = pytest.importorskip("vimamba.exporting.onnx_file", exc_type=ImportError)
    onnx_file.write_onnx(program, names, tmp_path / "model.onnx")
    runner = onnx_file.OnnxRunner(tmp_path / "model.onnx")
    for images in (x, torch.randn(2, 4, 6, 8)):
        expected = model(images)
        torch.testing.assert_close(program.module()(images), expected)
        torch.testing.assert_close(next(iter(runner(images))), expected, rtol=1e-4, atol=1e-5)
