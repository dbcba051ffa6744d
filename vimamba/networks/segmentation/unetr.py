"""UNETR's convolutional blocks (Hatamizadeh et al. 2022, arXiv:2103.10504) for images and volumes.

Swin-UMamba and SegMamba use MONAI's, with residual blocks and instance norms without parameters,
and their files use the same names.

Sizes: N batch, C channels, *grid two or three axes.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UPSAMPLE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ResidualBlock(nn.Module):
    """Two convolutions with instance norms and a shortcut.

    Args:
        dim_in, dim: Channels in and out.
        dims: Axes of the grid, 2 or 3.
    """

    def __init__(self, dim_in: int, dim: int, *, dims: int = 2) -> None:
        super().__init__()
        conv = _CONV[dims]
        self.conv1 = conv(dim_in, dim, 3, padding=1, bias=False)
        self.conv2 = conv(dim, dim, 3, padding=1, bias=False)
        self.shortcut = conv(dim_in, dim, 1, bias=False) if dim_in != dim else None
        self.norm = _NORM[dims](dim)
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *grid) to (N, C, *grid)."""
        y = self.norm(self.conv2(self.act(self.norm(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.norm(self.shortcut(x))
        return self.act(y + x)


class UpBlock(nn.Module):
    """Upsample by 2, concatenate the skip, convolve.

    Args:
        dim_in, dim: Channels in and out.
        dims: Axes of the grid, 2 or 3.
    """

    def __init__(self, dim_in: int, dim: int, *, dims: int = 2) -> None:
        super().__init__()
        self.upsample = _UPSAMPLE[dims](dim_in, dim, 2, stride=2, bias=False)
        self.block = ResidualBlock(2 * dim, dim, dims=dims)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, C_in, *grid) and a skip (N, C, *doubled) to the skip's shape."""
        return self.block(torch.cat([self.upsample(x), skip], dim=1))


def unetr_rules(deepest: int) -> dict[str, str | Callable[[re.Match[str]], str]]:
    """Rules for "encoder1", ... as our `skips`, "decoder<deepest>", ... as `ups`, then `refine`."""

    def rename(match: re.Match[str]) -> str:
        number = int(match["number"])
        if match["part"] == "encoder":
            block = f"skips.{number - 1}"
        else:
            block = "refine" if number == 1 else f"ups.{deepest - number}"
        if match["place"] == "transp_conv":
            return f"{block}.upsample.weight"
        inner = f"{block}.block" if match["place"].startswith("conv_block") else block
        leaf = {"1": "conv1", "2": "conv2", "3": "shortcut"}[match["place"][-1]]
        return f"{inner}.{leaf}.weight"

    return {
        r"(?P<part>encoder|decoder)(?P<number>\d)\."
        r"(?P<place>transp_conv|(?:layer|conv_block)\.conv\d)\.conv\.weight": rename
    }
