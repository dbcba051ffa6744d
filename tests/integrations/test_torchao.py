"""torchao quantizes the linear layers of every model to 8 bits."""

import pytest
import timm
import torch
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

from tests.backbones import TEST_MODELS, kinds_first


def is_wanted(module, name):
    # the step sizes are in an exponent, and their projection is small
    return isinstance(module, nn.Linear) and "dt_proj" not in name


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
@pytest.mark.parametrize("name", kinds_first(TEST_MODELS))
def test_8_bit_logits_follow_the_float_ones(name, config):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=50).eval()
    image = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        expected = model(image)
        quantize_(model, config(), filter_fn=is_wanted)
        found = model(image)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    quantized = {n for n, m in linear.items() if "Int8" in type(m.weight).__name__}
    assert quantized == {n for n in linear if "dt_proj" not in n}
    # 1 of 255 steps in weights and activations, over some layers: measured 0.3 to 1.1 %
    spread = expected.max() - expected.min()
    assert 0 < (found - expected).abs().max() < 0.03 * spread
