"""Vim's small segmentation backbone: rotary, with the residual stream as features.

No outputs of the official code are available for it, so this has a second implementation, in
float64, which uses the official parameters by their names and processes one token at a time.
"""

import math

import pytest
import timm
import torch
import torch.nn.functional as F

import vimamba
from tests.parity.official import fill, filled_state
from vimamba.checkpoints import CheckpointError

SMALL = {"img_size": 128, "depth": 4, "d_state": 16}
DENSE = {
    "class_token": "none",
    "rotary": True,
    "pyramid": (0, 1, 2, 3),
    "pyramid_residual": True,
    "features_only": True,
}
SIDE, DIM = 8, 48


def official_file():
    """The parameters of the tiny configuration, and the constant buffers of rotary ones."""
    state = filled_state("vim_seg_test")
    angles = rotary_angles()
    return {**state, "rope.freqs_cos": angles.cos().float(), "rope.freqs_sin": angles.sin().float()}


def rotary_angles():
    frequencies = 10000.0 ** (-2 * torch.arange(DIM // 4, dtype=torch.float64) / (DIM / 2))
    places = torch.arange(SIDE, dtype=torch.float64) / SIDE * 14
    one = (places[:, None] * frequencies).repeat_interleave(2, dim=1)
    rows, columns = one.repeat_interleave(SIDE, dim=0), one.repeat(SIDE, 1)
    return torch.cat([rows, columns], dim=1)


def rotate(x):
    pairs = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * rotary_angles().cos() + pairs * rotary_angles().sin()


def direction(xz, mixer, suffix):
    """One direction of a mixer: (N, 2 D, L) to (N, L, D)."""
    x, z = xz.chunk(2, dim=1)
    weight = mixer[f"conv1d{suffix}.weight"]
    taps = F.conv1d(F.pad(x, (3, 0)), weight, groups=x.shape[1])
    v = F.silu(taps + mixer[f"conv1d{suffix}.bias"][:, None]).transpose(1, 2)
    A = -mixer["A_b_log" if suffix else "A_log"].exp()
    projected = v @ mixer[f"x_proj{suffix}.weight"].T
    factors, B, C = projected.split([math.ceil(DIM / 16), A.shape[1], A.shape[1]], dim=-1)
    delta = factors @ mixer[f"dt_proj{suffix}.weight"].T + mixer[f"dt_proj{suffix}.bias"]
    step = F.softplus(delta)
    state, out = torch.zeros(v.shape[0], *A.shape, dtype=torch.float64), []
    for t in range(v.shape[1]):
        written = (step[:, t] * v[:, t])[..., None] * B[:, t, None]
        state = (step[:, t, :, None] * A).exp() * state + written
        out.append((state * C[:, t, None]).sum(-1) + mixer[f"D{suffix}"] * v[:, t])
    return torch.stack(out, dim=1) * F.silu(z).transpose(1, 2)


def mix(x, mixer):
    xz = (x @ mixer["in_proj.weight"].T).transpose(1, 2)
    y = direction(xz, mixer, "") + direction(xz.flip(2), mixer, "_b").flip(1)
    return y / 2 @ mixer["out_proj.weight"].T


def to_maps(state, tokens, level):
    x = tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))

    def double(x, name):
        return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)

    if level == 0:
        norm = [state[f"fpn1.1.{leaf}"] for leaf in ("running_mean", "running_var")]
        x = F.batch_norm(
            double(x, "fpn1.0"), *norm, state["fpn1.1.weight"], state["fpn1.1.bias"], eps=1e-5
        )
        return double(F.gelu(x), "fpn1.3")
    return {1: lambda: double(x, "fpn2.0"), 2: lambda: x, 3: lambda: F.max_pool2d(x, 2)}[level]()


def official_maps(state, image):
    """Hidden tokens and the residual stream, side by side; a feature follows from both."""
    state = {k: v.double() for k, v in state.items() if v.is_floating_point()}
    patches = F.conv2d(
        image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16
    )
    hidden, residual = patches.flatten(2).transpose(1, 2) + state["pos_embed"], None
    streams = []
    for i in range(4):
        hidden = rotate(hidden)
        residual = hidden if residual is None else rotate(residual) + hidden
        streams.append(residual)
        rms = residual.square().mean(-1, keepdim=True).add(1e-5).rsqrt()
        normed = residual * rms * state[f"layers.{i}.norm.weight"]
        prefix = f"layers.{i}.mixer."
        hidden = mix(normed, {k[len(prefix) :]: v for k, v in state.items() if prefix in k})
    features = [*streams[1:], residual + hidden]
    return [to_maps(state, feature, level) for level, feature in enumerate(features)]


def load(state, tmp_path, **kwargs):
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
    overlay = {"file": str(tmp_path / "a.pth")}
    arguments = {**SMALL, **DENSE, **kwargs}
    return timm.create_model(
        "test_vim", pretrained=True, pretrained_cfg_overlay=overlay, **arguments
    )


def test_its_maps_are_those_of_the_written_description(tmp_path):
    state = official_file()
    image = torch.from_numpy(fill.fill_input((1, 3, 128, 128))).double()
    model = load(state, tmp_path).eval().double()
    with torch.no_grad():
        ours, expected = model(image), official_maps(state, image)
    for a, b in zip(ours, expected, strict=True):
        # the biases of the steps and the file's own numbers are float32
        assert float((a - b).norm() / b.norm()) < 1e-9
    # the recorded spread of the official code's outputs
    spreads = [round(float(level.std()), 3) for level in ours]
    assert spreads == [0.162, 0.546, 1.123, 0.809]


def test_a_model_without_rotation_refuses_the_file(tmp_path):
    with pytest.raises(CheckpointError, match="rotary embeddings in the file only"):
        load(official_file(), tmp_path, rotary=False)


def test_the_residual_stream_needs_a_pyramid():
    with pytest.raises(ValueError, match=r"pyramid_residual=True needs pyramid=\(…\)"):
        timm.create_model("test_vim", pyramid_residual=True)


@pytest.mark.parametrize("rotary", [True, False])
def test_identify_tells_both_segmentation_backbones(rotary, tmp_path):
    arguments = {"img_size": 512, "class_token": "none", "pyramid": (5, 11, 17, 23)}
    state = filled_state("vim_tiny_seg_backbone")
    if rotary:
        arguments |= {"rotary": True, "pyramid_residual": True}
        state |= {"rope.freqs_cos": torch.ones(1024, 192), "rope.freqs_sin": torch.zeros(1024, 192)}
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
    found = vimamba.identify(tmp_path / "a.pth")
    assert found.variant == "vim_tiny_patch16_224"
    assert dict(found.arguments) == arguments
