"""Mixers and blocks that two or more families share.

There are two kinds of mixers. A map mixer (SS2D, SSD2D) takes tokens on a grid, (N, *grid, C), and
finds its own paths. A token mixer (MambaMixer) takes tokens (N, L, C) and paths over them, as
needed by a backbone with a class token or registers.
"""

from vimamba.layers.cells import crop, pad_to_cells
from vimamba.layers.channel_affine import ChannelAffine
from vimamba.layers.channel_gate import ChannelGate, channel_gate_rules
from vimamba.layers.conv_mlp import ConvMlp
from vimamba.layers.conv_norm import ConvNorm
from vimamba.layers.conv_pyramid import ConvDownsample, ConvStem, MapMlp
from vimamba.layers.dates import ARRANGEMENTS, check_arrangement, join_dates, part_dates
from vimamba.layers.drop_path import drop_path_rates
from vimamba.layers.init_linear import init_linear_
from vimamba.layers.mamba import (
    MambaMixer,
    VimBlock,
    init_vim_blocks_,
    join_branches,
    make_vim_block,
    mamba_rules,
)
from vimamba.layers.mlla import (
    BottleneckDownsample,
    DepthwiseConv,
    PositionedBlock,
    ResidualStem,
    mean_attention,
    positioned_rules,
)
from vimamba.layers.necked_head import NeckedHead
from vimamba.layers.path_tokens import along_paths, pad_tokens, sum_paths, visit_padding
from vimamba.layers.projected_head import ProjectedHead
from vimamba.layers.projected_scan import MapScan, ProjectedScan, init_map_scans_
from vimamba.layers.resample_tokens import resample_tokens
from vimamba.layers.resize import resize
from vimamba.layers.rotary import ResampledRotary, RotaryEmbed
from vimamba.layers.scan import SelectiveScan, StateSpaceDuality
from vimamba.layers.simple_pyramid import SimplePyramid
from vimamba.layers.ss2d import SS2D, SSD2D, ScanMixer, split_paths, ss2d_rules
from vimamba.layers.ssm import init_step_bias_, scan_parameters
from vimamba.layers.tokens import (
    GridEmbed,
    PaddedPatchEmbed,
    PatchEmbed,
    init_patches_,
    insert_into_paths,
    insert_tokens,
    pick_tokens,
    split_tokens,
    to_pair,
)
from vimamba.layers.vss import (
    GATED_SS2D,
    NormedStage,
    OverlapDownsample,
    OverlapStem,
    PatchExpand,
    PatchMerging,
    PatchStem,
    Stage,
    VSSBlock,
    init_vss_,
)
from vimamba.layers.wavelet import WaveletConv
from vimamba.layers.window_stage import WindowStage

__all__ = [
    "ARRANGEMENTS",
    "GATED_SS2D",
    "SS2D",
    "SSD2D",
    "BottleneckDownsample",
    "ChannelAffine",
    "ChannelGate",
    "ConvDownsample",
    "ConvMlp",
    "ConvNorm",
    "ConvStem",
    "DepthwiseConv",
    "GridEmbed",
    "MambaMixer",
    "MapMlp",
    "MapScan",
    "NeckedHead",
    "NormedStage",
    "OverlapDownsample",
    "OverlapStem",
    "PaddedPatchEmbed",
    "PatchEmbed",
    "PatchExpand",
    "PatchMerging",
    "PatchStem",
    "PositionedBlock",
    "ProjectedHead",
    "ProjectedScan",
    "ResampledRotary",
    "ResidualStem",
    "RotaryEmbed",
    "ScanMixer",
    "SelectiveScan",
    "SimplePyramid",
    "Stage",
    "StateSpaceDuality",
    "VSSBlock",
    "VimBlock",
    "WaveletConv",
    "WindowStage",
    "along_paths",
    "channel_gate_rules",
    "check_arrangement",
    "crop",
    "drop_path_rates",
    "init_linear_",
    "init_map_scans_",
    "init_patches_",
    "init_step_bias_",
    "init_vim_blocks_",
    "init_vss_",
    "insert_into_paths",
    "insert_tokens",
    "join_branches",
    "join_dates",
    "make_vim_block",
    "mamba_rules",
    "mean_attention",
    "pad_to_cells",
    "pad_tokens",
    "part_dates",
    "pick_tokens",
    "positioned_rules",
    "resample_tokens",
    "resize",
    "scan_parameters",
    "split_paths",
    "split_tokens",
    "ss2d_rules",
    "sum_paths",
    "to_pair",
    "visit_padding",
]
