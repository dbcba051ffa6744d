"""What every segmentation network owes its users, whole or a head on a backbone."""

import pytest
import torch

import vimamba

# arguments that make gradients reach everything at the start
BACKBONES = {"test_vmamba": {}, "test_vim": {}, "test_resnet": {"zero_init_last": False}}
# and that make networks small enough for tests
NETWORKS = {
    "vm_unet": {"depths": (1, 1, 1), "decoder_depths": (1, 1, 1), "dims": (16, 32, 64)},
}
HEADS_ON_BACKBONES = [(b, h) for b in BACKBONES for h in vimamba.list_heads()]
ALL = [*HEADS_ON_BACKBONES, *((n, None) for n in NETWORKS)]
every_segmenter = pytest.mark.parametrize(("model", "head"), ALL)


def create(model, head, **kwargs):
    return vimamba.create_segmenter(
        model, head, **{"num_classes": 3, **(NETWORKS | BACKBONES)[model], **kwargs}
    )


def test_every_whole_network_is_tested():
    assert vimamba.list_segmenters() == sorted(NETWORKS)


@every_segmenter
def test_logits_have_the_size_of_the_image_and_gradients_reach_every_parameter(model, head):
    torch.manual_seed(0)
    network = create(model, head)
    logits = network(torch.randn(2, 3, 75, 101))
    logits.square().mean().backward()
    assert logits.shape == (2, 3, 75, 101)
    missed = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missed == []
    assert all(p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 3, 33, 64)).shape == (1, 3, 33, 64)


@every_segmenter
def test_bf16_follows_float32(model, head):
    torch.manual_seed(0)
    network = create(model, head, num_classes=20).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            ours = network(image)
    assert ours.shape == (1, 20, 64, 96)
    error = (ours.float() - expected).norm() / expected.norm()
    assert error < 0.1


@pytest.mark.parametrize(
    ("model", "head"), [(m, h) for m, h in ALL if m not in ("test_vim", "test_resnet")]
)
def test_an_exported_network_gives_the_same_numbers(model, head):
    torch.manual_seed(0)
    network = create(model, head, num_classes=1).eval()
    image = torch.randn(1, 3, 61, 90)
    exported = torch.export.export(network, (image,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(image), network(image), rtol=1e-5, atol=1e-6)


@every_segmenter
def test_saved_weights_load_strictly(model, head, tmp_path):
    network = create(model, head)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    again = create(model, head)
    again.load_pretrained(tmp_path / "weights.pth")
    for (name, ours), theirs in zip(
        network.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    state = network.state_dict()
    state.pop(next(iter(state)))
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(vimamba.checkpoints.CheckpointError, match="1 missing key"):
        again.load_pretrained(tmp_path / "weights.pth")
