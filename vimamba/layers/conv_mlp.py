"""An MLP with a depthwise convolution in between, as in PVTv2 (Wang et al. 2022).

Source: arXiv:2106.13797. Sizes: N batch, H and W grid, C channels.
"""

from typing import Any

from torch import Tensor, nn

from vimamba.layers.mlla import DepthwiseConv


class ConvMlp(nn.Module):
    """Two linear layers with a depthwise 3x3 convolution between them.

    Args:
        dim: C.
        hidden: Channels between the linear layers.
        residual: Add the convolution's input to its output.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, hidden: int, *, residual: bool = False, **dd: Any) -> None:
        super().__init__()
        self.residual = residual
        self.fc1 = nn.Linear(dim, hidden, **dd)
        self.conv = DepthwiseConv(hidden, **dd)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        x = self.fc1(x)
        y = self.conv(x)
        return self.fc2(self.act(x + y if self.residual else y))
