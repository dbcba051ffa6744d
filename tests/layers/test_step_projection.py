"""The step-size projection: in the scan if it is a plain weight, called otherwise."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import vimamba  # noqa: F401  registers the models
from vimamba.layers import SS2D, MambaMixer
from vimamba.layers.ssm import StepProjection

RANK, INNER = 3, 5


def make(**changes):
    torch.manual_seed(0)
    return StepProjection(nn.Linear(RANK, INNER, bias=False, **changes) for _ in range(2))


def steps(projection, dt):
    """The step sizes, wherever the product is computed."""
    delta, weight = projection(dt)
    return delta if weight is None else delta @ weight.transpose(1, 2)


def is_called(projection):
    return projection(torch.randn(2, 2, 7, RANK))[1] is None


class Doubled(nn.Module):
    """A minimal adapter."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_plain_layers_give_the_scan_their_weights():
    projection, dt = make(), torch.randn(2, 2, 7, RANK)
    delta, weight = projection(dt)
    assert delta is dt
    assert torch.equal(weight, torch.stack([layer.weight for layer in projection]))
    called = torch.stack([layer(dt[:, k]) for k, layer in enumerate(projection)], dim=1)
    torch.testing.assert_close(steps(projection, dt), called)


def wrap(projection):
    projection[1] = Doubled(projection[1])


def hook(projection):
    projection[1].register_forward_hook(lambda layer, inputs, out: 2 * out)


def hook_before(projection):
    projection[1].register_forward_pre_hook(lambda layer, inputs: 2 * inputs[0])


def replace_forward(projection):
    layer = projection[1]
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight)


def reparametrize(projection):
    parametrize.register_parametrization(projection[1], "weight", Twice())


@pytest.mark.parametrize("change", [wrap, hook, hook_before, replace_forward, reparametrize])
def test_a_layer_that_is_more_than_its_weight_is_called(change):
    projection, dt = make(), torch.randn(2, 2, 7, RANK)
    expected = steps(projection, dt)
    expected[:, 1] *= 2
    change(projection)
    assert is_called(projection)
    torch.testing.assert_close(steps(projection, dt), expected)


def test_a_bias_is_added():
    projection, dt = make(), torch.randn(2, 2, 7, RANK)
    expected = steps(projection, dt)
    for layer in projection:
        layer.bias = nn.Parameter(torch.ones(INNER))
    torch.testing.assert_close(steps(projection, dt), expected + 1)


def test_pruned_layers_are_called():
    pruned = make()
    prune.l1_unstructured(pruned[0], "weight", amount=3)
    assert is_called(pruned)


def test_quantized_layers_are_called():
    quantization = pytest.importorskip("torchao.quantization")
    quantized = make()
    quantization.quantize_(quantized, quantization.Int8WeightOnlyConfig(version=2))
    assert is_called(quantized)


def test_backward_hooks_fire():
    projection, seen = make(), []
    projection[0].register_full_backward_hook(lambda *_: seen.append(1))
    steps(projection, torch.randn(2, 2, 7, RANK, requires_grad=True)).sum().backward()
    assert seen == [1]


def test_a_hook_on_all_modules_sees_every_layer():
    projection, seen = make(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        steps(projection, torch.randn(2, 2, 7, RANK))
    finally:
        handle.remove()
    assert all(any(layer is m for m in seen) for layer in projection)


@pytest.mark.parametrize("name", ["test_vim", "test_vmamba"])
def test_low_rank_adapters_of_a_model_change_and_learn(name):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "dt_proj" in n]
    before = model(image)
    config = peft.LoraConfig(r=2, target_modules=layers, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    after = adapted(image)
    assert not torch.allclose(before, after, rtol=1e-6, atol=0)
    after.square().sum().backward()
    grads = [p.grad for n, p in adapted.named_parameters() if "lora_" in n]
    assert len(grads) == 2 * len(layers)
    assert all(g is not None and g.any() for g in grads)


@pytest.mark.parametrize("mixer", [SS2D(8, expand=1.0, dt_rank=3), MambaMixer(8, dt_rank=3)])
def test_a_mixer_gives_the_same_either_way(mixer):
    mixer = mixer.double()
    if isinstance(mixer, SS2D):
        inputs = (torch.randn(2, 4, 5, 8, dtype=torch.float64),)
    else:
        paths = torch.arange(20).expand(2, -1)
        inputs = (torch.randn(2, 20, 8, dtype=torch.float64), paths)
    results, calls = [], []
    for _ in range(2):
        y = mixer(*inputs)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))])
        layers = [*mixer.scan.dt_proj]
        if isinstance(mixer, MambaMixer):
            layers += mixer.x_proj
        for layer in layers:
            layer.register_forward_hook(lambda *_: calls.append(1))
    assert len(calls) == len(layers)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_projects_in_the_scan(strict):
    model = timm.create_model("test_vim", depth=1).eval()
    image = torch.randn(1, 3, 96, 96)
    program = torch.export.export(model, (image,), strict=strict)
    (scan,) = [n for n in program.graph.nodes if "selective_scan" in str(n.target)]
    assert scan.args[8] is not None
    torch.testing.assert_close(program.module()(image), model(image))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(torch.__version__ < (2, 8), reason="torch 2.7 ignores hooks that come later")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_notices_a_hook_that_comes_later(backend):
    torch.manual_seed(0)
    model = timm.create_model("test_vim").eval()
    image = torch.randn(1, 3, 96, 96)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    before = compiled(image)
    mixer = model.blocks[0].mixer
    mixer.scan.dt_proj[0].register_forward_hook(lambda layer, inputs, out: out + 3)
    after = compiled(image)
    assert not torch.allclose(before, after, rtol=1e-6, atol=0)
    torch.testing.assert_close(after, model(image))
