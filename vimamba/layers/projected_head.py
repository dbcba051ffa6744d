"""A classifier that projects the last map before it is pooled.

Sizes: N batch, H and W map, C channels.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vimamba.timm_layers import ClassifierHead


class ProjectedHead(ClassifierHead):
    """A 1x1 convolution, norm and activation, then timm's classifier; unpooled maps are unchanged.

    Args:
        in_features: C.
        num_classes, pool_type, drop_rate: As in timm.
        hidden: Channels to pool.
        act: Constructor of the activation before the pooling.
        bias: Give the convolution a bias.
        input_fmt: Layout of the maps, "NHWC" or "NCHW".
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str,
        drop_rate: float,
        *,
        hidden: int,
        act: Callable[[], nn.Module],
        bias: bool,
        input_fmt: str,
        **dd: Any,
    ) -> None:
        # the pooling is channels-first
        super().__init__(hidden, num_classes, pool_type, drop_rate, **dd)
        self.hidden, self.bias, self.act = hidden, bias, act()
        self.channels_last = input_fmt == "NHWC"
        self.projects = bool(pool_type)
        self.project = self._new_projection(in_features, dd) if pool_type else nn.Identity()
        if not pool_type:
            self.num_features = self.in_features = in_features

    def _new_projection(self, in_features: int, dd: dict[str, Any]) -> nn.Module:
        conv = nn.Conv2d(in_features, self.hidden, 1, bias=self.bias, **dd)
        norm = nn.BatchNorm2d(self.hidden, **dd)
        return nn.Sequential(OrderedDict(conv=conv, norm=norm)).train(self.training)

    def reset(
        self,
        num_classes: int,
        pool_type: str | None = None,
        reset_other: bool = False,
        in_features: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Replace the last linear layer; without pooling, "", the projection is removed, too."""
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        pool_type = self.global_pool.pool_type if pool_type is None else pool_type
        in_features = in_features or self.in_features
        if not pool_type:
            self.project = nn.Identity().train(self.training)
        elif not self.projects:
            self.project = self._new_projection(in_features, dd)
        self.projects = bool(pool_type)
        in_features = self.hidden if pool_type else in_features
        super().reset(num_classes, pool_type, reset_other, in_features, **dd)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, C, H, W), or (N, H, W, C), to (N, num_classes)."""
        if not self.projects:
            return x
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)
        x = self.drop(self.global_pool(self.act(self.project(x))))
        return x if pre_logits else self.fc(x)
