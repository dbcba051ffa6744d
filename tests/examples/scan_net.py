"""A custom network in one file: mixers over cells of 4 x 4 pixels, for segmentation.

`vimamba fit --import tests/examples/scan_net.py --task segmentation --model scan_net --data FOLDER`
trains it.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vimamba.layers import SS2D
from vimamba.networks import Segmenter, register_network
from vimamba.scan_orders import order_of_block


class ScanNet(Segmenter):
    """A convolution, residual mixers and a classifier of cells.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images.
        dim: Channels of the mixers.
        depth: Number of mixers.
        scan_order: Order of all mixers, or a list that they use cyclically.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        *,
        dim: int = 16,
        depth: int = 2,
        scan_order: str | Sequence[str] = "cross",
    ) -> None:
        super().__init__(
            (4, 4),
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg={"architecture": "scan_net", "input_size": (in_chans, 64, 64)},
        )
        self.stem = nn.Conv2d(in_chans, dim, 4, 4)
        self.mixers = nn.ModuleList(
            SS2D(dim, scan_order=order_of_block(scan_order, i), d_state=4) for i in range(depth)
        )
        self.classifier = nn.Conv2d(dim, num_classes, 1)

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of the cells; `Segmenter` resizes them to the pixels."""
        x = self.stem(x).permute(0, 2, 3, 1)
        for mixer in self.mixers:
            x = x + mixer(x)
        return [self.classifier(x.permute(0, 3, 1, 2))]


@register_network(task="segmentation")
def scan_net(
    *, aux: bool = False, img_size: Any = None, pretrained: bool = False, **kwargs: Any
) -> ScanNet:
    """A `ScanNet` for images of any size, without auxiliary outputs or published weights."""
    if aux or pretrained:
        raise ValueError(f"aux={aux}, pretrained={pretrained}: scan_net has neither")
    return ScanNet(**kwargs)
