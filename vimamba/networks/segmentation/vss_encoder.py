"""The encoder shared by medical networks: VMamba's first generation without classifier."""

import re
from collections.abc import Callable
from typing import Any

import timm

from vimamba.checkpoints import CheckpointError
from vimamba.layers import ss2d_rules
from vimamba.models.vmamba import FIRST_GENERATION, VMamba

Rules = dict[str, str | Callable[[re.Match[str]], str]]


def make_encoder(in_chans: int, depths: tuple[int, ...], **kwargs: Any) -> VMamba:
    """A VMamba of the first generation without a norm after the last stage.

    Args:
        in_chans: Channels of its input.
        depths: Blocks per stage.
        **kwargs: Additional arguments of `VMamba`.
    """
    sizes = {**FIRST_GENERATION, **kwargs}
    encoder = VMamba(in_chans=in_chans, num_classes=0, depths=depths, **sizes)
    encoder.prune_intermediate_layers(len(depths), prune_norm=True)
    return encoder


def block_rules(theirs: str, ours: str) -> Rules:
    """Rules for the parameters of one VSS block.

    Args:
        theirs: Pattern of everything before a parameter's name.
        ours: Its replacement.
    """
    return {
        **ss2d_rules(theirs + r"self_attention\.", f"{ours}mixer."),
        theirs + r"ln_1\.(?P<leaf>.*)": f"{ours}norm1.\\g<leaf>",
    }


def encoder_rules(theirs: str, merging: str) -> Rules:
    """Rules for the parameters of the whole encoder.

    Args:
        theirs: Pattern of everything before a parameter's name.
        merging: Pattern of a patch merging, with the number of the stage before it as a group.
    """

    def next_stage(match: re.Match[str]) -> str:
        return f"encoder.stages.{int(match[1]) + 1}.downsample.{match[2]}"

    return {
        theirs + r"patch_embed\.proj\.(.*)": r"encoder.stem.conv1.\1",
        theirs + r"patch_embed\.norm\.(.*)": r"encoder.stem.norm1.\1",
        **block_rules(theirs + r"layers\.(\d+)\.blocks\.(\d+)\.", r"encoder.stages.\1.blocks.\2."),
        theirs + merging + r"\.((?:reduction|norm)\..*)": next_stage,
    }


def load_vmamba(
    encoder: VMamba, model: str, *, fresh: tuple[str, ...] = (), **kwargs: Any
) -> VMamba:
    """Start an encoder from a published VMamba, which may be deeper.

    Args:
        encoder: From `make_encoder`.
        model: timm name of the VMamba.
        fresh: Parameters of the encoder that keep their random initialization.
        **kwargs: Arguments of `timm.create_model`.

    Returns:
        The published VMamba.

    Raises:
        CheckpointError: A parameter of the encoder has no counterpart of the same shape.
    """
    source = timm.create_model(model, pretrained=True, num_classes=0, **kwargs)
    assert isinstance(source, VMamba)
    published = source.state_dict()
    taken = {k: v for k, v in encoder.state_dict().items() if k not in fresh}
    unfit = [k for k, v in taken.items() if k not in published or published[k].shape != v.shape]
    if unfit:
        raise CheckpointError(
            f"the encoder cannot start from {model}: {len(unfit)} parameters have no counterpart "
            f"of their shape, {', '.join(unfit[:6])}"
        )
    encoder.load_state_dict({k: published[k] for k in taken}, strict=not fresh)
    return source
