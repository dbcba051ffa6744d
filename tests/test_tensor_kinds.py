"""Models with default dtypes, fake tensors, tensor subclasses and transforms."""

import pytest
import timm
import torch
from monai.data import MetaTensor
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode
from torchvision.tv_tensors import Image

import vimamba
from tests.networks.test_segmenter import NETWORKS
from vimamba.layers import GATED_SS2D
from vimamba.tasks.classification.task import Classification
from vimamba.tasks.segmentation.task import Segmentation

MODELS = {
    "medmamba": ("test_medmamba", {}),
    "vim": ("test_vim", {"img_size": 32}),
    "vim_rotary": ("test_vim", {"img_size": 32, "rotary": True, "dynamic_img_size": True}),
    "vmamba": ("test_vmamba", {}),
    "vmamba_m2": ("test_vmamba_m2", {}),
    "vmamba_v0": ("test_vmamba", {**GATED_SS2D, "mlp_ratio": 0.0, "overlapping": False}),
}
NAMES = [*MODELS, *NETWORKS, "vim_fpn"]
EVERYTHING = pytest.mark.parametrize("name", NAMES)
# each operator, and a network
TRACED = {"vim_rotary", "vmamba_m2", "vm_unet", "umamba_bot_2d"}
TRACED_FIRST = pytest.mark.parametrize(
    "name", [n if n in TRACED else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
SIZE = {"vim_rotary": (64, 32)}


def build(name):
    torch.manual_seed(0)
    if name in MODELS:
        model, kwargs = MODELS[name]
        return timm.create_model(model, num_classes=3, **kwargs)
    if name == "vim_fpn":
        return vimamba.create_segmenter("test_vim", "fpn", num_classes=3)
    return vimamba.create_segmenter(name, num_classes=3, **NETWORKS[name])


def image_for(name, count=1):
    return torch.randn(count, 3, *SIZE.get(name, (32, 32)))


@EVERYTHING
def test_the_default_dtype_changes_no_number(name):
    net, image = build(name).eval(), image_for(name)
    expected = net(image)
    try:
        torch.set_default_dtype(torch.bfloat16)
        found = net(image)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    # the same network in the same process: the same numbers
    assert torch.equal(found, expected)


@TRACED_FIRST
def test_fake_tensors_get_shapes_and_flops_in_both_directions(name):
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        net = build(name)
        out = net(image_for(name, 2))
        out.sum().backward()
    assert out.shape[:2] == (2, 3)
    assert all(p.grad is None or p.grad.shape == p.shape for p in net.parameters())
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, MetaTensor) for name in NAMES), ("vmamba", Image)]
)
def test_subclasses_of_tensors_give_what_tensors_give(name, kind):
    net, image = build(name).eval(), image_for(name)
    results = []
    for given in (image, kind(image)):
        net.zero_grad()
        out = net(given)
        out.square().sum().backward()
        grads = [torch.as_tensor(p.grad).flatten() for p in net.parameters() if p.grad is not None]
        results.append((out.as_subclass(torch.Tensor).detach(), torch.cat(grads)))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("task", [Classification, Segmentation])
def test_tasks_take_the_loaders_of_monai(task):
    if task is Classification:
        made = task("test_vmamba", num_classes=3, img_size=32)
        target = torch.tensor([0, 2])
    else:
        made = task("vm_unet", num_classes=3, model_kwargs=NETWORKS["vm_unet"])
        target = torch.zeros(2, 32, 32, dtype=torch.int64)
    made.log = made.log_dict = lambda *args, **kwargs: None
    image = torch.randn(2, 3, 32, 32)
    made.eval()
    expected = made.training_step((image, target), 0)
    found = made.training_step((MetaTensor(image), MetaTensor(target)), 0)
    found.backward()
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("name", ["medmamba", "vim", "vim_rotary", "vmamba_m2", "vm_unet"])
def test_per_sample_gradients_are_those_of_each_sample(name):
    net, images = build(name).eval(), image_for(name, 2)
    parameters = {key: value.detach() for key, value in net.named_parameters()}

    def loss(parameters, image):
        return functional_call(net, parameters, (image[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, images)
    net(images[1:]).square().sum().backward()
    expected = torch.cat([p.grad.flatten() for p in net.parameters()])
    both = torch.cat([found[key][1].flatten() for key in parameters])
    assert (both - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["medmamba", "vim", "vim_rotary", "vmamba_m2", "umamba_bot_2d"])
def test_forward_mode_agrees_with_the_backward_pass(name):
    net, image = build(name).eval().double(), image_for(name).double().requires_grad_()
    direction = torch.randn_like(image)
    out, tangent = jvp(net, (image.detach(),), (direction,))
    weight = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(net(image), image, weight)
    assert (tangent * weight).sum().item() == pytest.approx((gradient * direction).sum().item())
