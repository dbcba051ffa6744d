"""VideoMamba (Li et al. 2024, arXiv:2403.06977), its models of images: Vim with less around it.

The class token stands before the patches, the two paths of a block are summed, and every linear
layer, including those of the step sizes, is initialized as in a ViT.

Official code: https://github.com/OpenGVLab/VideoMamba (Apache-2.0)
Sizes: N batch, H and W image, h and w grid, L = h * w patches, C channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models import register_model
from torch import nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import init_linear_, init_vim_blocks_, join_branches, make_vim_block
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainParts
from vimamba.models.vim import VIM_RULES

__all__ = ["VideoMamba"]


class VideoMamba(PlainBackbone):
    """VideoMamba backbone of images with a classifier.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size: Side of a patch.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (class token), "avg" or "".
        embed_dim: C.
        depth: Blocks.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "bidirectional",
        **options: Any,
    ) -> None:
        mixer = {"d_state": d_state, "average_paths": False}
        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=partial(make_vim_block, embed_dim, **mixer),
            scan_order=scan_order,
            prefix="first",
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """All linear layers as in DeiT, and initial step sizes of softplus(0)."""
        super().init_parameters()
        init_linear_(self)
        for block in self.blocks:
            nn.init.zeros_(block.mixer.scan.dt_bias)  # type: ignore[union-attr]
        init_vim_blocks_(self.blocks)
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and join the parameters of the two branches.

        Raises:
            CheckpointError: A key matches no rule, or a direction is missing.
        """
        return join_branches(super().from_official(state_dict))


RULES = {
    **VIM_RULES,
    # for the comparison with a teacher in training
    r"distill_head\..*": None,
    # a file with rotary embeddings is Vim's and refused, because no name here matches
    r"rope\.(.*)": r"rope.\1",
}
_TOP1 = {
    "videomamba_tiny_patch16_224.in1k": 76.9,
    "videomamba_tiny_patch16_448.in1k": 79.3,
    "videomamba_tiny_patch16_576.in1k": 79.6,
    "videomamba_small_patch16_224.in1k": 81.2,
    "videomamba_small_patch16_448.in1k": 83.2,
    "videomamba_small_patch16_576.in1k": 83.5,
    "videomamba_middle_patch16_224.in1k": 82.8,
    "videomamba_middle_patch16_448.in1k": 83.8,
    "videomamba_middle_patch16_576.in1k": 84.0,
    "videomamba_base_patch16_224.in1k": 82.7,
}
register_family("VideoMamba", VideoMamba, RULES, top1=_TOP1)


def _rows(size: str, *resolutions: str) -> dict[str, dict[str, Any]]:
    """Rows of one size; models of larger images were fine-tuned from those of smaller ones."""
    rows = {}
    for number, resolution in enumerate(resolutions, start=1):
        file = f"videomamba_{size[0]}16_in1k_res{'to'.join(resolutions[:number])}.pth"
        tagged = f"videomamba_{size}_patch16_{resolution}.in1k"
        rows[tagged] = {"file": file, "size": int(resolution)}
    return rows


default_cfgs = make_cfgs(
    {
        **_rows("tiny", "224", "448", "576"),
        **_rows("small", "224", "448", "576"),
        **_rows("middle", "224", "448", "576"),
        **_rows("base", "224"),
        "test_videomamba.untrained": {"size": 64},
    },
    hub="OpenGVLab/VideoMamba",
    license="apache-2.0",
    cell=None,
    fixed_input_size=True,
    first_conv="patch_embed.proj",
    classifier="head",
    origin_url="https://github.com/OpenGVLab/VideoMamba",
    paper_name="VideoMamba: State Space Model for Efficient Video Understanding",
    paper_ids="arXiv:2403.06977",
    notes=("model of images",),
)


@register_model
def videomamba_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-Ti: 7.1 M parameters, 197 tokens."""
    return build_model(VideoMamba, "videomamba_tiny_patch16_224", pretrained, kwargs, embed_dim=192)


@register_model
def videomamba_tiny_patch16_448(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-Ti: 7.3 M parameters, 785 tokens."""
    sizes = {"img_size": 448, "embed_dim": 192}
    return build_model(VideoMamba, "videomamba_tiny_patch16_448", pretrained, kwargs, **sizes)


@register_model
def videomamba_tiny_patch16_576(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-Ti: 7.4 M parameters, 1,297 tokens."""
    sizes = {"img_size": 576, "embed_dim": 192}
    return build_model(VideoMamba, "videomamba_tiny_patch16_576", pretrained, kwargs, **sizes)


@register_model
def videomamba_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-S: 25.8 M parameters, 197 tokens."""
    sizes = {"embed_dim": 384}
    return build_model(VideoMamba, "videomamba_small_patch16_224", pretrained, kwargs, **sizes)


@register_model
def videomamba_small_patch16_448(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-S: 26.0 M parameters, 785 tokens."""
    sizes = {"img_size": 448, "embed_dim": 384}
    return build_model(VideoMamba, "videomamba_small_patch16_448", pretrained, kwargs, **sizes)


@register_model
def videomamba_small_patch16_576(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-S: 26.2 M parameters, 1,297 tokens."""
    sizes = {"img_size": 576, "embed_dim": 384}
    return build_model(VideoMamba, "videomamba_small_patch16_576", pretrained, kwargs, **sizes)


@register_model
def videomamba_middle_patch16_224(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-M: 74.2 M parameters, 197 tokens."""
    sizes = {"embed_dim": 576, "depth": 32}
    return build_model(VideoMamba, "videomamba_middle_patch16_224", pretrained, kwargs, **sizes)


@register_model
def videomamba_middle_patch16_448(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-M: 74.6 M parameters, 785 tokens."""
    sizes = {"img_size": 448, "embed_dim": 576, "depth": 32}
    return build_model(VideoMamba, "videomamba_middle_patch16_448", pretrained, kwargs, **sizes)


@register_model
def videomamba_middle_patch16_576(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-M: 74.9 M parameters, 1,297 tokens."""
    sizes = {"img_size": 576, "embed_dim": 576, "depth": 32}
    return build_model(VideoMamba, "videomamba_middle_patch16_576", pretrained, kwargs, **sizes)


@register_model
def videomamba_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-B: 97.6 M parameters, 197 tokens."""
    return build_model(VideoMamba, "videomamba_base_patch16_224", pretrained, kwargs, embed_dim=768)


@register_model
def test_videomamba(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """A very small VideoMamba for tests; no weights."""
    sizes = {"img_size": 64, "embed_dim": 48, "depth": 4, "d_state": 8}
    return build_model(VideoMamba, "test_videomamba", pretrained, kwargs, **sizes)
