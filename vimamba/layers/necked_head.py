"""timm's classifier with layers between the pooling and the linear layer.

Sizes: N batch, C channels.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vimamba.timm_layers import ClassifierHead


class NeckedHead(ClassifierHead):
    """timm's classifier with a neck on the pooled features; unpooled maps skip it.

    Args:
        in_features, num_classes, pool_type, drop_rate: As in timm.
        neck: Function from C to a module from (N, C) to (N, C).
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
        neck: Callable[..., nn.Module],
        input_fmt: str,
        **dd: Any,
    ) -> None:
        super().__init__(in_features, num_classes, pool_type, drop_rate, input_fmt=input_fmt, **dd)
        self.make_neck = neck
        self.neck = self._new_neck(dd)

    def _new_neck(self, dd: dict[str, Any]) -> nn.Module:
        if self.global_pool.is_identity():
            return nn.Identity()
        return self.make_neck(self.num_features, **dd).train(self.training)

    def reset(
        self,
        num_classes: int,
        pool_type: str | None = None,
        reset_other: bool = False,
        in_features: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Replace the last linear layer, and the neck if its number of features differs."""
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        before = self.global_pool.is_identity(), self.num_features
        super().reset(num_classes, pool_type, reset_other, in_features, **dd)
        if before != (self.global_pool.is_identity(), self.num_features):
            self.neck = self._new_neck(dd)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A map to (N, num_classes)."""
        x = self.drop(self.neck(self.global_pool(x)))
        if pre_logits:
            return self.flatten(x)
        return self.flatten(self.fc(x))
