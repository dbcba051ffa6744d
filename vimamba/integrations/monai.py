"""timm models as encoders of MONAI's FlexibleUNet."""

from typing import Any

import timm
from monai.networks.blocks import BaseEncoder
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from torch import Tensor, nn

from vimamba.layers.tracing import expect_whole_cells
from vimamba.timm_names import create_skeleton

_STRIDES = (4, 8, 16, 32)


class TimmEncoder(nn.Module):
    """A timm model with an additional convolution for the map of stride 2.

    Args:
        model: timm name of a model with maps of strides 4, 8, 16 and 32.
        stem_channels: Channels of the map of stride 2.
        spatial_dims: 2.
        in_channels: Channels of the image.
        pretrained: Load the model's published weights.
        **kwargs: Additional arguments of `timm.create_model`.
    """

    def __init__(
        self,
        model: str,
        stem_channels: int,
        *,
        spatial_dims: int,
        in_channels: int,
        pretrained: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims={spatial_dims} must be 2: {model} is for images")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem_channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem_channels),
            nn.ReLU(),
        )
        self.body = timm.create_model(
            model, pretrained=pretrained, features_only=True, in_chans=in_channels, **kwargs
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W), sides multiples of 32, to five maps of strides 2, 4, 8, 16 and 32."""
        # for other sizes these maps are rounded up, but FlexibleUNet's decoder expects them rounded
        # down
        x = expect_whole_cells(x, 32)
        return [self.stem(x)] + self.body(x)  # noqa: RUF005  scripts know no other form


def register_backbone(model: str, *, stem_channels: int = 32, **kwargs: Any) -> str:
    """Register a timm model with `FlexibleUNet`.

    Args:
        model: timm name, or address, of a model with maps of strides 4, 8, 16 and 32.
        stem_channels: Channels of the map of stride 2, which a convolution adds.
        **kwargs: Arguments of `timm.create_model`.

    Returns:
        The name for `FlexibleUNet(backbone=...)`, which is the model's name.

    Raises:
        ValueError: The model has other strides.
    """
    probe = create_skeleton(model, features_only=True, **kwargs)
    info: Any = probe.feature_info
    if tuple(info.reduction()) != _STRIDES:
        raise ValueError(
            f"model={model!r} has maps of strides {info.reduction()}, not {list(_STRIDES)}; "
            "a Vim needs pyramid=(…), four of its blocks"
        )
    parameters = {
        "model": model,
        "stem_channels": stem_channels,
        "spatial_dims": 2,
        "in_channels": 3,
        "pretrained": False,
        **kwargs,
    }
    channels = (stem_channels, *info.channels())

    class Encoder(TimmEncoder, BaseEncoder):
        """The class methods that the registry calls, for this model."""

        @classmethod
        def get_encoder_names(cls) -> list[str]:
            return [model]

        @classmethod
        def num_outputs(cls) -> list[int]:
            return [len(channels)]

        @classmethod
        def num_channels_per_output(cls) -> list[tuple[int, ...]]:
            return [channels]

        @classmethod
        def get_encoder_parameters(cls) -> list[dict[str, Any]]:
            return [parameters]

    FLEXUNET_BACKBONE.register_class(Encoder)
    return model
