"""The mixers of tokens on grids of one, two and three axes, and along paths."""

import inspect

import pytest
import torch

import vimamba
from tests.closeness import assert_same
from vimamba.layers import SS2D, SSD2D, MambaMixer


@pytest.mark.parametrize("mixer", [SS2D, SSD2D])
@pytest.mark.parametrize(
    ("order", "deep_order"),
    [("hilbert", "hilbert"), ("local(window=2)", "frames(order='local(window=2)')")],
)
def test_a_volume_of_one_slice_is_mixed_as_an_image(mixer, order, deep_order):
    torch.manual_seed(0)
    flat = mixer(16, scan_order=order, gated=True, conv_bias=True).double()
    deep = mixer(16, scan_order=deep_order, gated=True, conv_bias=True, dims=3).double()
    state = flat.state_dict()
    weight = torch.randn_like(deep.conv.weight)
    weight[:, :, 1] = state["conv.weight"]
    deep.load_state_dict({**state, "conv.weight": weight})
    image = torch.randn(2, 5, 3, 16, dtype=torch.float64, requires_grad=True)
    volume = image.detach()[:, None].requires_grad_()
    expected, found = flat(image), deep(volume)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-9, atol=1e-11)
    probe = torch.randn_like(expected)
    (expected * probe).sum().backward()
    (found[:, 0] * probe).sum().backward()
    torch.testing.assert_close(volume.grad[:, 0], image.grad, rtol=1e-9, atol=1e-11)
    for (name, ours), theirs in zip(deep.named_parameters(), flat.parameters(), strict=True):
        grad = ours.grad[:, :, 1] if name == "conv.weight" else ours.grad
        torch.testing.assert_close(grad, theirs.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("order", "grid"), [("atrous", (7,)), ("frames + interslice", (3, 1, 5))], ids=str
)
def test_mixers_of_other_grids_script_and_export(order, grid):
    model, x = SS2D(8, scan_order=order, dims=len(grid)).eval(), torch.randn(2, *grid, 8)
    expected = model(x)
    assert expected.shape == x.shape
    assert_same(torch.jit.script(model)(x), expected)
    assert_same(torch.export.export(model, (x,)).module()(x), expected)


def test_a_mixer_of_volumes_follows_an_order_of_ones_own(own_orders):
    @vimamba.register_scan_order
    def there_and_back(depth: int, height: int, width: int) -> torch.Tensor:
        """Slice by slice, every second slice backward; and the same reversed."""
        path = torch.arange(depth * height * width).view(depth, -1)
        path[1::2] = path[1::2].flip(1)
        return torch.stack([path.flatten(), path.flatten().flip(0)])

    assert len(inspect.getsource(there_and_back).splitlines()) <= 8
    torch.manual_seed(0)
    mixer = SS2D(8, scan_order="there_and_back", dims=3)
    # without neighbors, so that only the scan knows the positions of slices
    torch.nn.init.dirac_(mixer.conv.weight, groups=mixer.conv.groups)
    known = SS2D(8, scan_order="bidirectional", dims=3)
    known.load_state_dict(mixer.state_dict())

    def turned(volume: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [part.flip(1, 2) if i % 2 else part for i, part in enumerate(volume.unbind(1))], dim=1
        )

    volume = torch.randn(2, 3, 4, 5, 8)
    expected = turned(known(turned(volume)))
    torch.testing.assert_close(mixer(volume), expected)
    assert not torch.allclose(mixer(volume), known(volume))


def test_the_axes_of_a_mixer_are_those_of_its_order():
    with pytest.raises(ValueError, match=r"spiral is for grids of 2 axes .*, not 3"):
        SS2D(8, scan_order="spiral", dims=3)
    with pytest.raises(ValueError, match="dims=4 of a grid must be 1, 2 or 3"):
        SS2D(8, dims=4)


@pytest.mark.parametrize("mixer", [SS2D, SSD2D, MambaMixer])
# the last one has partly empty windows
@pytest.mark.parametrize("order", [*vimamba.list_scan_orders(dims=2), "local(window=3)"])
def test_every_scan_order_works_in_every_mixer(mixer, order):
    height, width = 5, 7
    if mixer is MambaMixer:
        paths = vimamba.scan_paths(order, height, width)
        model, x = mixer(8, num_paths=len(paths)), torch.randn(2, height * width, 8)
        y = model(x, paths)
    else:
        model, x = mixer(16, scan_order=order), torch.randn(2, height, width, 16)
        y = model(x)
    y.square().sum().backward()
    assert y.shape == x.shape
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_heads_of_mamba_2_must_divide_the_channels():
    with pytest.raises(ValueError, match="heads=2 must divide the 27 inner channels"):
        SSD2D(18, expand=1.5)


@pytest.mark.parametrize(
    ("mixer", "sizes"),
    [
        (SS2D, {"d_state": 0}),
        (SS2D, {"dt_rank": 0}),
        (SS2D, {"dt_rank": "big"}),
        (SSD2D, {"heads": 0}),
        (SSD2D, {"d_state": 1.5}),
        (MambaMixer, {"num_paths": 0}),
        (MambaMixer, {"d_conv": -1}),
    ],
)
def test_a_size_that_is_no_positive_integer_is_refused(mixer, sizes):
    ((name, size),) = sizes.items()
    with pytest.raises(ValueError, match=f"{name}={size!r} must be an integer, at least 1"):
        mixer(8, **sizes)


@pytest.mark.parametrize("path", [[0, 1, 2, 3, 4], [2, -1, 0, 1, -1]])
def test_the_causal_convolution_follows_the_path(path):
    mixer = MambaMixer(4, num_paths=1, expand=1.0).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    ours = mixer.convolve(x, torch.tensor([path]))[:, 0]
    weight, expected = mixer.conv.weight[:, 0], torch.zeros_like(ours)
    for t, token in enumerate(path):
        if token < 0:
            continue
        total = mixer.conv.bias.expand(2, 4).clone()
        for lag in range(4):
            if t >= lag and path[t - lag] >= 0:
                total = total + weight[:, 3 - lag] * x[:, path[t - lag]]
        expected[:, token] = torch.nn.functional.silu(total)
    torch.testing.assert_close(ours, expected)
