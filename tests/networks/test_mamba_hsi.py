"""MambaHSI on cubes of any size and number of bands."""

import pytest
import torch

import vimamba
from vimamba.networks import MambaHSI


def create(**kwargs):
    torch.manual_seed(0)
    return MambaHSI(3, 7, **{"dim": 10, "norm_groups": 2, **kwargs}).eval()


@pytest.mark.parametrize("branches", ["both", "spatial", "spectral"])
def test_logits_have_the_size_of_the_cube_and_gradients_reach_every_parameter(branches):
    # four groups of three channels, the last of one
    network = create(branches=branches, scan_order="cross")
    logits = network(torch.randn(2, 7, 21, 14))
    logits.square().mean().backward()
    assert logits.shape == (2, 3, 21, 14)
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    with torch.no_grad():
        assert network(torch.randn(1, 7, 3, 1)).shape == (1, 3, 3, 1)


def test_images_of_a_batch_know_nothing_of_each_other_unless_asked():
    cubes = torch.randn(2, 7, 12, 16)
    for joint in (False, True):
        network = create(joint_sequence=joint)
        with torch.no_grad():
            alone, together = network(cubes[1:]), network(cubes)[1:]
        assert torch.allclose(alone, together, atol=1e-5) != joint


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="branches='spa' is unknown; choose from"):
        create(branches="spa")
    for name in ("aux", "pretrained"):
        with pytest.raises(ValueError, match=f"{name}=True: .*mambahsi_pavia"):
            vimamba.create_network("mambahsi_pavia", **{name: True})
