"""Layers call the kernels themselves only where nothing else would see the operators' calls."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.profiler import profile

from vimamba.layers.mamba import MambaMixer
from vimamba_kernels.path_conv import op as path_conv
from vimamba_kernels.selective_scan import op as selective_scan

OPERATORS = {"vimamba::causal_conv_along_paths", "vimamba::selective_scan"}


@pytest.fixture
def mixer_and_inputs():
    torch.manual_seed(0)
    tokens = torch.arange(5)
    return MambaMixer(16).eval(), (torch.randn(2, 5, 16), torch.stack([tokens, tokens.flip(0)]))


@pytest.fixture
def direct_calls(monkeypatch):
    """Counts the calls of kernels that reach no operator."""
    calls = []
    for module in (path_conv, selective_scan):
        decide = module.runs_only_kernel

        def record(*tensors, decide=decide):
            calls.append(decide(*tensors))
            return calls[-1]

        monkeypatch.setattr(module, "runs_only_kernel", record)
    return calls


def test_inference_calls_the_kernels_with_the_same_result(mixer_and_inputs, direct_calls):
    mixer, inputs = mixer_and_inputs
    expected = mixer(*inputs).detach()
    assert direct_calls == [False, False]
    with torch.no_grad():
        assert torch.equal(mixer(*inputs), expected)
    assert direct_calls == [False, False, True, True]


def test_a_profile_names_the_operators(mixer_and_inputs):
    mixer, inputs = mixer_and_inputs
    with torch.inference_mode(), profile() as found:
        mixer(*inputs)
    assert {event.key for event in found.key_averages()} >= OPERATORS


def test_autocast_reaches_the_operators(mixer_and_inputs):
    mixer, (_, paths) = mixer_and_inputs
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert mixer.convolve(torch.randn(2, 5, 32), paths).dtype == torch.bfloat16


def test_forward_derivatives_reach_the_operators(mixer_and_inputs):
    mixer, (x, paths) = mixer_and_inputs
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(mixer(dual, paths)).tangent is not None


def test_wrong_shapes_are_still_refused(mixer_and_inputs):
    mixer, (x, paths) = mixer_and_inputs
    with torch.inference_mode(), pytest.raises(ValueError, match="paths has shape"):
        mixer(x, paths[:1])
