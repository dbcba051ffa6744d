"""Networks with different scan orders start with the same weights where shapes agree."""

import pytest
import torch

from vimamba.scanbench.start import start_alike
from vimamba.tasks import Classification, Segmentation

TINY = {"depths": [1, 1], "decoder_depths": [1, 1], "dims": [8, 16]}


def classifier(order, seed=0, **optim):
    torch.manual_seed(seed + 17 * len(order))  # independent of earlier random numbers
    kwargs = {"scan_order": order}
    return Classification("test_vmamba", model_kwargs=kwargs, num_classes=3, seed=seed, optim=optim)


def segmenter(order, seed=0):
    return Segmentation("vm_unet", model_kwargs={**TINY, "scan_order": order}, seed=seed)


def shared(one, other):
    """Names of the parameters with the same shape in both."""
    theirs = dict(other.named_parameters())
    return [n for n, p in one.named_parameters() if n in theirs and theirs[n].shape == p.shape]


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_all_that_agrees_in_shape_is_equal(make):
    tasks = {order: make(order) for order in ("raster", "cross", "spiral", "omni")}
    before = {order: dict(task.net.state_dict()) for order, task in tasks.items()}
    nets = {order: task.net for order, task in tasks.items()}
    apart = [
        name
        for name in shared(nets["raster"], nets["cross"])
        if not torch.equal(before["raster"][name], before["cross"][name])
    ]
    assert apart  # by default they start differently
    shares = {order: start_alike(task) for order, task in tasks.items()}
    assert all(0.1 < share <= 1 for share in shares.values()), shares
    assert shares["cross"] == 1
    for order, net in nets.items():
        for other, other_net in nets.items():
            theirs = dict(other_net.named_parameters())
            mine = dict(net.named_parameters())
            for name in shared(net, other_net):
                assert torch.equal(mine[name], theirs[name]), (order, other, name)


def test_a_start_depends_on_the_seed_alone_and_on_nothing_drawn_before():
    one, again, other = classifier("raster"), classifier("raster"), classifier("raster", seed=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for task in (one, again, other):
        start_alike(task)
    assert torch.equal(torch.rand(3), expected)
    mine, same, apart = (dict(task.net.named_parameters()) for task in (one, again, other))
    weight = "stages.0.blocks.0.mixer.in_proj.weight"
    assert torch.equal(mine[weight], same[weight])
    assert not torch.equal(mine[weight], apart[weight])


def test_the_average_of_the_weights_starts_with_them():
    task = classifier("raster", ema=0.9)
    start_alike(task)
    for name, parameter in task.net.named_parameters():
        assert torch.equal(parameter, dict(task.average.module.named_parameters())[name])
