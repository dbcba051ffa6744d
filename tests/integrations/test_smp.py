"""segmentation_models_pytorch takes the models by their timm names."""

import pytest
import segmentation_models_pytorch as smp
import torch

from tests.backbones import MULTISCALE, TEST_MODELS, any_size, is_plain, kinds_first, strides
from tests.closeness import assert_same

PLAIN = [name for name in TEST_MODELS if len({*strides(name)}) == 1]
STAGED = [name for name in MULTISCALE if not is_plain(name)]
LOSS = smp.losses.DiceLoss("multiclass")


@pytest.mark.parametrize("architecture", ["Unet", "UPerNet", "FPN", "Segformer"])
@pytest.mark.parametrize("name", kinds_first(STAGED))
def test_models_of_four_stages_train_in(architecture, name, train_once):
    options = {"encoder_weights": None, "in_channels": 13, "classes": 4}
    net = getattr(smp, architecture)(f"tu-{name}", **options)
    image, mask = torch.randn(2, 13, 64, 96), torch.randint(0, 4, (2, 64, 96))
    train_once(net, lambda: LOSS(net(image), mask))
    assert net.eval()(image).shape == (2, 4, 64, 96)


@pytest.mark.parametrize("name", kinds_first(PLAIN))
def test_plain_models_train_in_dpt(name, train_once):
    net = smp.DPT(f"tu-{name}", encoder_weights=None, in_channels=1, classes=4, **any_size(name))
    image, mask = torch.randn(2, 1, 64, 96), torch.randint(0, 4, (2, 64, 96))
    # DPT reads the features before the last norm
    train_once(
        net,
        lambda: LOSS(net(image), mask),
        unused=("encoder.model.norm", "encoder.model.pool", "encoder.model.head"),
    )
    assert net.eval()(image).shape == (2, 4, 64, 96)


def test_a_network_is_saved_and_read_again(tmp_path):
    net = smp.Unet("tu-test_vmamba", encoder_weights=None, classes=2).eval()
    net.save_pretrained(tmp_path)
    image = torch.randn(1, 3, 64, 64)
    assert_same(smp.from_pretrained(tmp_path).eval()(image), net(image))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: smp.Unet("tu-test_vim", encoder_weights=None), ValueError),
        (lambda: smp.Unet("tu-test_mobilemamba", encoder_weights=None), ValueError),
        (lambda: smp.DeepLabV3Plus("tu-test_vmamba", encoder_weights=None), TypeError),
    ],
)
def test_what_does_not_work_is_refused_when_it_is_built(make, error):
    with pytest.raises(error):  # messages of smp and timm
        make()
