"""peft trains low-rank adapters on the projections of every mixer, and merges them back."""

import pytest
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.backbones import TEST_MODELS, kinds_first


def projections(model):
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".mixer." in n]


def with_adapters(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    targets = projections(model)
    config = LoraConfig(r=4, target_modules=targets, modules_to_save=["head"])
    return get_peft_model(model, config), targets


@pytest.mark.parametrize("name", kinds_first(TEST_MODELS))
def test_adapters_on_every_projection_train_and_merge(name, tmp_path):
    net, targets = with_adapters(name)
    original = timm.create_model(name, num_classes=3)
    image = torch.randn(2, *original.pretrained_cfg["input_size"])
    start = net(image)
    # one step moves B away from zero, the second gives A a gradient, too
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        net(image).square().sum().backward()
        optimizer.step()
    for target in targets:
        lora = net.get_submodule(f"base_model.model.{target}")
        for half in (lora.lora_A, lora.lora_B):
            assert half["default"].weight.grad.abs().sum() > 0, target
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    trained = net.eval()(image)
    assert not torch.allclose(start, trained)

    net.save_pretrained(tmp_path)
    torch.manual_seed(0)
    base = timm.create_model(name, num_classes=3).eval()
    again = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(again(image), trained)

    merged = net.merge_and_unload()
    torch.testing.assert_close(merged(image), trained)
    assert list(merged.state_dict()) == list(original.state_dict())


@pytest.mark.parametrize("name", kinds_first(TEST_MODELS))
def test_every_kind_of_projection_is_a_linear_layer(name):
    names = projections(timm.create_model(name))
    kinds = {name.split(".mixer.")[1].rstrip(".0123456789") for name in names}
    assert kinds - {"scan.dt_proj"} == {"in_proj", "x_proj", "out_proj"}
