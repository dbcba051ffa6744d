"""A stage of a pyramid whose blocks mix the tokens of a window, not of the map.

Sizes: N batch, H and W map, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.layers.vss import Stage


class WindowStage(Stage):
    """Halve the grid, cut the map into windows, run the blocks on each, reassemble the map.

    Zeros pad the last windows, even a single one larger than the map. They are tokens like any
    other: MambaVision's scores on dense tasks, whose windows are larger than many maps, depend on
    them.

    Args:
        downsample: From (N, C_in, H, W) to the map that is cut.
        blocks: Of a window's tokens, (N * windows, window * window, C).
        window: Side of a window.
    """

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module], *, window: int) -> None:
        super().__init__(downsample, blocks)
        self.order = f"windows(size={window})"
        self.tokens = window * window

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
        x = self.downsample(x)
        samples, height, width = x.shape[0], x.shape[2], x.shape[3]
        cells = height * width
        x = x.permute(0, 2, 3, 1)
        path = torch.ops.vimamba.scan_paths(x, self.order)[0]
        # after the map's cells comes a zero, which pads windows
        cell = torch.where(path < 0, cells, path)
        x = F.pad(x.flatten(1, 2), (0, 0, 0, 1))
        # windows are merged into the batch and split again, so no number of windows is special
        windows = x.index_select(1, cell).flatten(0, 1).unflatten(0, (-1, self.tokens))
        windows = self.mix(windows).flatten(0, 1).unflatten(0, (samples, -1))
        blank = windows.new_zeros((samples, cells + 1, windows.shape[2]))
        x = blank.index_copy(1, cell, windows)[:, :cells]
        return x.transpose(1, 2).unflatten(2, (height, width)).contiguous()
