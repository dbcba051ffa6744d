"""Registration networks, at sizes and with options that were not recorded."""

import pytest
import torch

import vimamba
from vimamba.networks.registration import (
    RegistrarEnsemble,
    compose,
    integrate_velocity,
    resize_flow,
    warp,
)

SMALL = {"embed_dim": 6, "head_dim": 4}
NAMES = [name for name in vimamba.list_networks("registration") if name != "vmambamorph_feat"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_boxes_are_padded_cropped_and_trained_on(name):
    torch.manual_seed(0)
    net = vimamba.create_network(name, **SMALL)
    moving, fixed = torch.randn(2, 2, 1, 17, 20, 16).unbind()
    torch.nn.init.normal_(net.flow.weight, std=0.1)
    found = net(moving, fixed)
    assert found.flow.shape == found.velocity.shape == (2, 3, 17, 20, 16)
    torch.testing.assert_close(found.moved, warp(moving, found.flow))
    parts = [x for x in (found.moved, found.velocity, found.features) if x is not None]
    sum(x.square().mean() for x in parts).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_images_are_registered_at_half_resolution():
    torch.manual_seed(0)
    kwargs = {**SMALL, "dims": 2, "in_chans": 2}
    net = vimamba.create_network("vmambamorph", **kwargs, half_resolution=True).eval()
    torch.nn.init.normal_(net.flow.weight, std=0.1)
    images = torch.randn(2, 1, 2, 16, 32)
    with torch.no_grad():
        found, velocity = net(*images), net.velocity(*images)
    torch.testing.assert_close(found.velocity, resize_flow(velocity, 0.5))
    assert found.velocity.shape == (1, 2, 8, 16)
    torch.testing.assert_close(found.flow, resize_flow(integrate_velocity(found.velocity), 2.0))


def test_the_merge_is_rotated_on_cubes_only():
    torch.manual_seed(0)
    published = vimamba.create_network("vmambamorph", **SMALL)
    inverse = vimamba.create_network("vmambamorph", **SMALL, rotated_merge=False)
    inverse.load_state_dict(published.state_dict())
    for size, same in (((32, 32, 32), False), ((32, 32, 16), True)):
        pair = torch.randn(2, 1, 1, *size)
        with torch.no_grad():
            first, second = (net.velocity(*pair) for net in (published, inverse))
        assert torch.equal(first, second) == same


def test_an_integrated_velocity_is_undone_by_its_opposite():
    size = 24
    places = torch.stack(torch.meshgrid(*[torch.linspace(0, 3.1416, size)] * 2, indexing="ij"))
    velocity = 2 * (places.sin().prod(0) * torch.tensor([1.0, -0.5]).view(2, 1, 1))[None]
    there, back = integrate_velocity(velocity), integrate_velocity(-velocity)
    assert there.abs().max() > 1.5
    assert compose(there, back).abs().max() < 0.05


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            ((1, 1, 8, 8, 8), (1, 1, 8, 8, 9)),
            r"moving=\(1, 1, 8, 8, 8\) and fixed=\(1, 1, 8, 8, 9\)",
        ),
        (((1, 2, 8, 8, 8),) * 2, "1 channels"),
        (((1, 1, 8, 8),) * 2, "3 spatial axes"),
    ],
)
def test_pairs_that_cannot_be_registered_are_refused(shapes, message):
    net = vimamba.create_network("mambamorph", **SMALL)
    with pytest.raises(ValueError, match=message):
        net(*map(torch.zeros, shapes))


def test_a_field_for_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"flow=\(1, 2, 4, 4, 4\) must be \(1, 3, 4, 4, 4\)"):
        warp(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 2, 4, 4, 4))


def test_nothing_moves_along_an_axis_of_one_cell():
    x = torch.rand(1, 1, 1, 5)
    torch.testing.assert_close(warp(x, torch.zeros(1, 2, 1, 5)), x)


def moved_by(name, **kwargs):
    """A network whose fields are a few cells long."""
    net = vimamba.create_network(name, **SMALL, **kwargs)
    torch.nn.init.normal_(net.flow.weight, std=0.1)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("mambamorph", {"half_resolution": True}), ("mambamorph_ori", {}), ("vmambamorph_rec", {})],
)
def test_a_network_joined_to_itself_is_itself(name, kwargs):
    torch.manual_seed(0)
    net = moved_by(name, dims=2, **kwargs)
    pair = torch.randn(2, 1, 1, 21, 32)
    with torch.no_grad():
        alone, joined = net(*pair), RegistrarEnsemble([net, net])(*pair)
    for key in ("moved", "flow"):
        torch.testing.assert_close(getattr(joined, key), getattr(alone, key))


def test_the_mean_of_velocities_is_integrated_and_that_of_displacements_is_not():
    torch.manual_seed(0)
    nets = [moved_by("mambamorph", dims=2) for _ in range(2)]
    half = moved_by("mambamorph", dims=2, half_resolution=True)
    bare = moved_by("mambamorph_ori", dims=2)
    pair = torch.randn(2, 1, 1, 16, 32)
    with torch.no_grad():
        found = [net(*pair) for net in (*nets, half, bare)]
        joined, mixed, plain = (
            RegistrarEnsemble(some)(*pair) for some in (nets, [nets[0], half], [nets[0], bare])
        )
    velocity = (found[0].velocity + found[1].velocity) / 2
    torch.testing.assert_close(joined.flow, integrate_velocity(velocity))
    velocity = (found[0].velocity + resize_flow(found[2].velocity, 2.0)) / 2
    torch.testing.assert_close(mixed.flow, integrate_velocity(velocity))
    torch.testing.assert_close(plain.flow, (found[0].flow + found[3].flow) / 2)
    torch.testing.assert_close(plain.moved, warp(pair[0], plain.flow))


def test_networks_for_other_images_are_not_joined():
    nets = [vimamba.create_network("mambamorph", **SMALL, in_chans=n) for n in (1, 2)]
    with pytest.raises(ValueError, match="networks must be for the same channels and axes"):
        RegistrarEnsemble(nets)
