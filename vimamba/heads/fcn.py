"""A few convolutions on one level of the pyramid (Long et al. 2015, arXiv:1411.4038).

As mmseg's `FCNHead`, used as the auxiliary head with UPerNet.
"""

from itertools import pairwise

from torch import Tensor, nn

from vimamba.heads.blocks import Classifier, ConvNormAct, check_pyramid


class FCNHead(nn.Module):
    """Logits from the second coarsest level, for an auxiliary loss.

    Args:
        channels, strides: Channels and strides of the pyramid, fine to coarse.
        num_classes: Output channels.
        width: Channels inside the head.
        depth: 3x3 convolutions before the classifier.
        drop_rate: Rate of channel dropout before the classifier.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        *,
        width: int = 256,
        depth: int = 1,
        drop_rate: float = 0.1,
    ) -> None:
        super().__init__()
        check_pyramid(channels, strides)
        widths = [channels[-2], *[width] * depth]
        self.convs = nn.Sequential(*(ConvNormAct(a, b, 3) for a, b in pairwise(widths)))
        self.classifier = Classifier(width, num_classes, drop_rate=drop_rate)

    def forward(self, features: list[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i), ...] to (N, num_classes, H_-2, W_-2)."""
        return self.classifier(self.convs(features[-2]))
