"""MONAI: FlexibleUNet with the models as encoders, its losses, metrics and inferers."""

import pytest
import torch
from monai.inferers import SliceInferer, sliding_window_inference
from monai.losses import DiceCELoss, DiceFocalLoss
from monai.metrics import DiceMetric
from monai.networks.nets import FlexibleUNet

from tests.backbones import MULTISCALE, kinds_first, pyramid
from vimamba.integrations.monai import register_backbone


def unet(name, **kwargs):
    torch.manual_seed(0)
    backbone = register_backbone(name, **pyramid(name))
    return FlexibleUNet(in_channels=1, out_channels=3, backbone=backbone, **kwargs)


@pytest.mark.parametrize("loss", [DiceCELoss, DiceFocalLoss])
@pytest.mark.parametrize("name", kinds_first(MULTISCALE))
def test_flexible_unet_trains_on(name, loss, train_once):
    net, compute = unet(name), loss(to_onehot_y=True, softmax=True)
    image, mask = torch.randn(2, 1, 64, 96), torch.randint(0, 3, (2, 1, 64, 96))
    train_once(net, lambda: compute(net(image), mask), unused=("encoder.body.model.norm",))
    prediction = net.eval()(image).argmax(1, keepdim=True)
    metric = DiceMetric(num_classes=3)
    metric(prediction, mask)
    assert 0 <= metric.aggregate() <= 1


def test_a_window_slides_over_an_image_of_any_size():
    net = unet("test_vmamba").eval()
    with torch.no_grad():
        logits = sliding_window_inference(
            torch.randn(1, 1, 150, 101), (64, 64), 4, net, overlap=0.25
        )
    assert logits.shape == (1, 3, 150, 101)


def test_a_volume_is_segmented_slice_by_slice():
    net = unet("test_vmamba").eval()
    with torch.no_grad():
        volume = torch.randn(1, 1, 70, 80, 3)
        logits = SliceInferer(roi_size=(64, 64), spatial_dim=2)(volume, net)
        one = sliding_window_inference(volume[..., 1], (64, 64), 1, net)
    torch.testing.assert_close(logits[..., 1], one)


def test_the_size_that_the_decoder_needs_is_named():
    with pytest.raises(ValueError, match=r"image of \(70, 96\): sides must be multiples of 32"):
        unet("test_vmamba")(torch.randn(1, 1, 70, 96))


def test_a_plain_model_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"model='test_vim' has maps of strides \[16, .* pyramid="):
        register_backbone("test_vim")


def test_volumes_are_refused():
    with pytest.raises(ValueError, match="spatial_dims=3 must be 2"):
        unet("test_vmamba", spatial_dims=3)


def test_weights_are_asked_for():
    with pytest.raises(RuntimeError, match="test_vmamba"):
        unet("test_vmamba", pretrained=True)
