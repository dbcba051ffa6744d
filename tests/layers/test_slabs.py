"""MLPs that process some tokens at a time on a CPU."""

import pytest
import torch
from torch import Tensor, nn

from vimamba.layers import SS2D, VSSBlock, slabs


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> VSSBlock:
    monkeypatch.setattr(slabs, "LARGE", 1)
    torch.manual_seed(0)
    block = VSSBlock(4, SS2D(4), mlp_ratio=4.0, drop_path=0.5, layer_scale=0.5)
    return block.double().eval()


def see_tokens(block: VSSBlock, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of tokens in each call of the MLP, without a hook."""
    seen: list[int] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(x.numel() // x.shape[-1])
        return nn.Linear.forward(block.mlp.fc1, x)  # type: ignore[arg-type]

    monkeypatch.setattr(slabs, "is_hooked", lambda module: False)
    monkeypatch.setattr(block.mlp.fc1, "forward", forward)
    return seen


def test_slabs_give_what_all_tokens_at_once_give(
    block: VSSBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 7, 9, 4, dtype=torch.float64)
    whole = block(x).detach()
    seen = see_tokens(block, monkeypatch)
    with torch.inference_mode():
        sliced = block(x)
    threads = torch.get_num_threads()
    assert max(seen) == min(32 * threads, 126)
    assert sum(seen) == 126
    torch.testing.assert_close(sliced, whole, rtol=0, atol=1e-12)


def test_training_derivatives_and_hooks_see_all_tokens_at_once(block: VSSBlock) -> None:
    x = torch.randn(1, 8, 9, 4, dtype=torch.float64)
    layers = [block.norm2, block.mlp]
    assert slabs.slab_size(x, layers) == 0
    with torch.no_grad():
        assert slabs.slab_size(x, layers) > 0
        assert slabs.slab_size(x.transpose(1, 2), layers) == 0
        seen: list[int] = []
        handle = block.mlp.register_forward_hook(lambda module, args, y: seen.append(y.numel()))
        block(x)
        assert seen == [x.numel()]
        handle.remove()
        block.train()
        assert slabs.slab_size(x, layers) == 0


def test_a_vmapped_block_takes_all_tokens_at_once(block: VSSBlock) -> None:
    x = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        each = torch.vmap(block)(x)
        torch.testing.assert_close(each, torch.stack([block(t) for t in x]), rtol=0, atol=1e-12)
