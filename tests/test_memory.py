"""Memory of training: the bytes saved by autograd, which are the same on every machine."""

import pytest
import timm
import torch

from tests.closeness import assert_same
from vimamba import scan_paths
from vimamba.layers import SS2D, SSD2D, MambaMixer

BATCH, SIDE, DIM = 2, 24, 32
TOKENS = SIDE * SIDE
# steps between the states that the scan saves for the backward pass
SPACING = 32
FLOAT = 4


def saved_bytes(module, *inputs):
    """Bytes of the storages that the backward pass reads, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(*inputs)
    return sum(saved.values())


def mixer_bytes(kind, d_state):
    torch.manual_seed(0)
    if kind is MambaMixer:
        mixer = MambaMixer(DIM, num_paths=4, d_state=d_state, expand=1.0)
        tokens = torch.randn(BATCH, TOKENS, DIM, requires_grad=True)
        return saved_bytes(mixer, tokens, scan_paths("cross", SIDE, SIDE))
    mixer = kind(DIM, d_state=d_state)
    return saved_bytes(mixer, torch.randn(BATCH, SIDE, SIDE, DIM, requires_grad=True))


@pytest.mark.parametrize("kind", [SS2D, SSD2D, MambaMixer])
def test_more_states_cost_their_projections_and_one_state_in_32_steps(kind):
    paths, few, many = 4, 16, 64
    growth = (mixer_bytes(kind, many) - mixer_bytes(kind, few)) / (many - few)
    states = BATCH * paths * (TOKENS // SPACING) * DIM * FLOAT
    projections = BATCH * paths * TOKENS * 2 * FLOAT  # B and C
    decay = paths * DIM * 2 * FLOAT  # A and its exponential
    weights = BATCH * paths * DIM * 2 * FLOAT  # of B and C, which a batched product copies
    assert growth <= states + projections + decay + weights
    # all states of all steps, which a scan composed of torch's operators would keep
    assert growth < BATCH * paths * TOKENS * DIM * FLOAT / 10


@pytest.mark.parametrize(
    ("name", "kwargs", "kept"),
    [
        # only the input of every block or stage is kept, and the tensors of stem and head
        ("test_vim", {"depth": 6}, 0.2),
        ("test_vmamba", {"depths": (2, 2, 4, 2)}, 0.35),
        ("test_vmamba_m2", {"depths": (2, 2, 4, 2)}, 0.25),
    ],
)
def test_gradient_checkpointing_keeps_a_part_and_gives_the_same_gradients(name, kwargs, kept):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs)
    image = torch.randn(2, 3, 96, 96)

    def gradients():
        model.zero_grad()
        model(image).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    everything, expected = saved_bytes(model, image), gradients()
    model.set_grad_checkpointing()
    assert saved_bytes(model, image) < kept * everything
    assert_same(gradients(), expected)
