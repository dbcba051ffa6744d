"""Operation counts of our operators follow the convention of the papers."""

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode

import vimamba  # noqa: F401
from vimamba_kernels.flops import fvcore_handles, scan_flops

# GFLOPs at 224 pixels in VMamba's README
PUBLISHED = {
    "vmamba_tiny_s1l8": 4.9,
    "vmamba_small_s1l20": 8.6,
    "vmamba_base_s1l20": 15.2,
    "vmamba_tiny_s2l5": 4.9,
    "vmamba_small_s2l15": 8.7,
    "vmamba_base_s2l15": 15.4,
    "vmamba_tiny_v0": 5.6,
    "vmamba_small_v0": 11.2,
    "vmamba_base_v0": 18.0,
}


def count(model, image):
    """(matrix products and convolutions, scans); a multiplication and an addition count as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    counts = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    scans = sum(flops for op, flops in counts.items() if "selective_scan" in op)
    return sum(counts.values()) - scans, scans


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_agree_with_the_published_ones(name):
    model = timm.create_model(name, device="meta").eval()
    products, scans = count(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert (products / 2 + scans) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.02)


def test_a_scan_counts_nine_operations_per_state():
    assert scan_flops((2, 4, 49, 96), (4, 96, 16)) == 9 * 2 * 4 * 49 * 96 * 16


def test_a_projection_in_the_scan_counts_as_the_papers_count_a_matrix_product():
    scan = 9 * 2 * 4 * 49 * 96 * 16
    sizes = (2, 4, 49, 6), (4, 96, 16), (4, 96, 6)
    assert scan_flops(*sizes) == scan + 2 * 4 * 49 * 96 * 6


def test_backward_counts_twice_as_much():
    model = timm.create_model("test_vmamba")
    image = torch.randn(1, 3, 96, 96)
    _, forward = count(model, image)
    with FlopCounterMode(display=False) as counter:
        model(image).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    both = sum(flops for op, flops in counts.items() if "selective_scan" in str(op))
    assert both == 3 * forward


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["test_vim", "test_vmamba"])
def test_fvcore_counts_the_same(name):
    model = timm.create_model(name).eval()
    image = torch.randn(1, 3, 96, 96)
    products, scans = count(model, image)
    analysis = FlopCountAnalysis(model, image).set_op_handle(**fvcore_handles())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = analysis.by_operator()
    assert sum(n for op, n in counts.items() if "selective_scan" in op) == scans
    assert counts["linear"] + counts["conv"] == pytest.approx(products / 2, rel=0.01)


def test_the_kernels_of_mamba_2_count_what_the_scan_of_their_channels_does():
    batch, k, length, heads, width, states = 2, 4, 30, 3, 8, 5

    def meta(*shape):
        return torch.empty(shape, device="meta")

    x, dt = meta(batch, length, heads, width), meta(batch, k, length, heads)
    B = meta(batch, k, length, states)
    absent = (None,) * 4
    arguments = (x, dt, meta(k, heads), B, B, *absent, True, None, None, True)
    expected = scan_flops((batch, k, length, heads * width), (k, heads * width, states))
    for name, call, factor in (
        ("ssd_forward", lambda op: op(*arguments, False), 1),
        ("ssd_backward", lambda op: op(x, None, *arguments), 2),
    ):
        with FlopCounterMode(display=False) as counter:
            call(getattr(torch.ops.vimamba, name))
        assert counter.get_total_flops() == factor * expected
