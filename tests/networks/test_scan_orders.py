"""Every network assigns the orders of a list cyclically to its blocks; built on the meta device."""

import pytest
import torch

import vimamba
from tests.backbones import mixers
from vimamba.networks.registry import find_network

# for grids of any number of axes
ORDERS = ["raster", "bidirectional"]
NEEDED = {
    "backbone_segmenter": {"model": "test_vmamba"},
    "backbone_change_detector": {"model": "test_vim"},
}


def outline(name, **kwargs):
    needed = NEEDED.get(name, {})
    if find_network(name).task != "registration":
        needed = {"num_classes": 2, **needed}
    with torch.device("meta"):
        return vimamba.create_network(name, **needed, **kwargs)


def paths_of(network):
    return [mixer.num_paths for mixer in mixers(network)]


@pytest.mark.parametrize("name", vimamba.list_networks())
def test_the_blocks_of_a_network_take_orders_by_turns(name):
    second, both = (paths_of(outline(name, scan_order=order)) for order in (ORDERS[1], ORDERS))
    # mixers of spectra and of decoders have fixed paths
    follow = [now for then, now in zip(second, both, strict=True) if then == 2]
    assert set(follow) == ({1, 2} if len(follow) > 1 else {1})
    assert all(now in (then, 1) for then, now in zip(second, both, strict=True))


@pytest.mark.parametrize("name", vimamba.list_networks())
def test_a_list_with_an_unknown_order_is_refused_in_a_line(name):
    with pytest.raises(ValueError, match="zigzagg") as refusal:
        outline(name, scan_order=["zigzagg", "raster"])
    assert "\n" not in str(refusal.value)
