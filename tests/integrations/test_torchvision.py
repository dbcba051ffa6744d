"""torchvision's detectors train on a feature pyramid of every model."""

import pytest
import torch
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tests.backbones import MULTISCALE, any_size, kinds_first, pyramid
from vimamba.integrations.torchvision import FPNBackbone

# sizes differ within a batch and are not multiples of a stride
IMAGES = [torch.rand(3, 61, 80), torch.rand(3, 70, 66)]
SMALL = {"min_size": 64, "max_size": 96}


def targets():
    boxes = torch.tensor([[5.0, 5.0, 40.0, 50.0], [30.0, 10.0, 60.0, 55.0]])
    common = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    return [{**common, "masks": torch.ones(2, *i.shape[1:], dtype=torch.uint8)} for i in IMAGES]


def train(net, train_once):
    unused = ("backbone.body.model.norm",)
    train_once(net, lambda: sum(net(IMAGES, targets()).values()), unused=unused)
    with torch.no_grad():
        found = net.eval()(IMAGES)
    assert [set(f) >= {"boxes", "labels", "scores"} for f in found] == [True, True]


@pytest.mark.parametrize("name", kinds_first(MULTISCALE))
def test_a_detector_trains_on(name, train_once):
    torch.manual_seed(0)
    backbone = FPNBackbone(name, 32, **pyramid(name))
    train(FasterRCNN(backbone, num_classes=3, **SMALL), train_once)


@pytest.mark.parametrize("detector", [MaskRCNN, RetinaNet])
def test_other_detectors_train(detector, train_once):
    torch.manual_seed(0)
    backbone = FPNBackbone("test_vmamba", 32)
    train(detector(backbone, num_classes=3, **SMALL), train_once)


def test_the_maps_of_a_plain_model_work_without_a_pyramid(train_once):
    torch.manual_seed(0)
    backbone = FPNBackbone("test_vim", 32, **any_size("test_vim"))
    train(FasterRCNN(backbone, num_classes=3, **SMALL), train_once)


def test_levels_can_be_chosen_and_added():
    extra = LastLevelP6P7(32, 32)
    backbone = FPNBackbone("test_vmamba", 32, extra_blocks=extra, out_indices=(1, 2, 3), in_chans=4)
    levels = backbone(torch.randn(1, 4, 128, 96))
    assert list(levels) == ["0", "1", "2", "p6", "p7"]
    sizes = [tuple(level.shape) for level in levels.values()]
    assert sizes == [(1, 32, h, w) for h, w in ((16, 12), (8, 6), (4, 3), (2, 2), (1, 1))]
