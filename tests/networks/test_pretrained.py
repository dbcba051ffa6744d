"""Networks start from published VMamba weights, completely or not at all."""

import pytest
import timm
import torch

import vimamba
from tests.parity.official import filled_state, shapes_only
from vimamba.checkpoints import CheckpointError


def overlay(tmp_path, state):
    torch.save({"model": state}, tmp_path / "vmamba.pth")
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "vmamba.pth")}}


def kept(network):
    """Parameters that a file of zeros has not overwritten."""
    return {name for name, p in network.named_parameters() if p.any()}


def test_vm_unet_starts_encoder_and_decoder_from_vmamba_s(tmp_path):
    state = {k: v.fill_(0) for k, v in filled_state("vmamba_small_v0").items()}
    for stage in range(4):
        state[f"layers.{stage}.blocks.1.ln_1.weight"].fill_(stage + 1)
    network = vimamba.create_segmenter("vm_unet", num_classes=2, **overlay(tmp_path, state))
    for stage in range(4):
        block = network.encoder.stages[stage].blocks[1]
        assert (block.norm1.weight == stage + 1).all()
    for i, stage in enumerate((4, 3, 2)):
        assert (network.decoder[i].blocks[1].norm1.weight == stage).all()
    marked = {f"encoder.stages.{i}.blocks.1.norm1.weight" for i in range(4)}
    marked |= {f"decoder.{i}.blocks.1.norm1.weight" for i in range(3)}
    fresh = {
        n for n in kept(network) if ".upsample." in n or n.startswith(("expand", "classifier"))
    }
    assert kept(network) == marked | fresh


@pytest.mark.parametrize("in_chans", [1, 3, 13])
def test_swin_umamba_d_starts_from_vmamba_t_for_any_number_of_bands(tmp_path, in_chans):
    state = filled_state("vmamba_tiny_v0")
    network = vimamba.create_segmenter(
        "swin_umamba_d", num_classes=2, in_chans=in_chans, **overlay(tmp_path, state)
    )
    filters = timm.models.adapt_input_conv(in_chans, state["patch_embed.proj.weight"])
    torch.testing.assert_close(network.encoder.stem.conv1.weight, filters)
    last = network.encoder.stages[2].blocks[8].mixer.out_proj.weight
    assert torch.equal(last, state["layers.2.blocks.8.self_attention.out_proj.weight"])


def test_swin_umamba_starts_from_vmamba_t_but_for_the_patch_embedding(tmp_path):
    args = overlay(tmp_path, shapes_only("vmamba_tiny_v0"))
    network = vimamba.create_segmenter("swin_umamba", num_classes=2, in_chans=5, **args)
    fresh = {n for n in kept(network) if n.startswith("encoder.")}
    conv = {"encoder.stem.conv1.weight", "encoder.stem.conv1.bias"}
    assert fresh == {*conv, "encoder.stem.norm1.weight"}


def test_another_generation_is_refused_by_its_name(tmp_path):
    args = overlay(tmp_path, shapes_only("vmamba_tiny_s1l8"))
    with pytest.raises(CheckpointError, match="it is vmamba_tiny_s1l8"):
        vimamba.create_segmenter("swin_umamba", num_classes=2, **args)


def test_an_encoder_that_the_weights_do_not_fill_is_refused(tmp_path):
    args = overlay(tmp_path, shapes_only("vmamba_tiny_v0"))
    with pytest.raises(CheckpointError, match=r"cannot start from vmamba_tiny_v0: \d+ parameters"):
        vimamba.create_segmenter("swin_umamba_d", num_classes=2, depths=(2, 2, 10, 2), **args)


def test_a_backbone_starts_from_its_own_file(tmp_path):
    args = overlay(tmp_path, shapes_only("vmamba_tiny_s1l8"))
    network = vimamba.create_segmenter("vmamba_tiny_s1l8", num_classes=2, in_chans=4, **args)
    fresh = {n for n in kept(network) if n.startswith("encoder.")}
    # classification files have no norms for the stages
    assert fresh == {f"encoder.body.model.stage_norms.{i}.weight" for i in range(4)}


def test_change_mamba_starts_from_vmamba_but_for_the_norms_of_its_features(tmp_path):
    # the tiny one without the last block of the third stage
    args = overlay(tmp_path, shapes_only("vmamba_tiny_s2l5"))
    network = vimamba.create_change_detector("mamba_bcd_tiny", num_classes=2, in_chans=4, **args)
    fresh = {n for n in kept(network) if n.startswith("encoder.")}
    assert fresh == {f"encoder.stage_norms.{i}.weight" for i in range(4)}
    assert network.license == "mit"
