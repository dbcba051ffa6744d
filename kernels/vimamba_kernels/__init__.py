"""Kernels of vision state-space models; they need torch only, not `vimamba`."""

from vimamba_kernels import flops as _flops  # noqa: F401  registers what the operators cost
from vimamba_kernels.mamba3 import Mamba3States, mamba3_scan
from vimamba_kernels.path_conv import causal_conv_along_paths
from vimamba_kernels.selective_scan import selective_scan, selective_scan_step
from vimamba_kernels.ssd import ssd
from vimamba_kernels.tree_scan import grid_tree, tree_sum

__all__ = [
    "Mamba3States",
    "causal_conv_along_paths",
    "grid_tree",
    "mamba3_scan",
    "selective_scan",
    "selective_scan_step",
    "ssd",
    "tree_sum",
]
