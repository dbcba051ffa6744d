"""Kernels of vision state-space models; they need torch only and know nothing of vision."""

from vimamba_kernels.selective_scan import selective_scan

__all__ = ["selective_scan"]
