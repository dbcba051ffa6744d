"""A feature pyramid from the maps of a plain, single-scale backbone (ViTDet, arXiv:2203.16527)."""

from typing import Any

from torch import Tensor, nn


class SimplePyramid(nn.Module):
    """Resize four maps of one size by factors 4, 2, 1 and 1/2, as in Vim's segmentation backbone.

    Args:
        dim: Channels in and out.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(dim, dim, 2, stride=2, **dd),
                    nn.BatchNorm2d(dim, **dd),
                    nn.GELU(),
                    nn.ConvTranspose2d(dim, dim, 2, stride=2, **dd),
                ),
                nn.Sequential(nn.ConvTranspose2d(dim, dim, 2, stride=2, **dd)),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(N, C, h, w) to (N, C, h * s, w * s), s = 4, 2, 1, 1/2 for level 0, 1, 2, 3."""
        y = x
        for i, layers in enumerate(self.levels):  # TorchScript has no other way to choose one
            if i == level:
                y = layers(x)
        return y
