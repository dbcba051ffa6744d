"""ChangeMamba (Chen et al. 2024, arXiv:2404.03425): scans over two dates after one VMamba.

    MambaBCD  binary change
    MambaSCD  change, and the classes at either date
    MambaBDA  buildings, and their damage

Official code: https://github.com/ChenHongruixuan/MambaCD (Apache-2.0). Its authors start from
weights of VMamba's second generation, for the tiny one without the last block of the third stage.
Sizes: N batch, C channels, H and W map.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from vimamba.checkpoints import Rules
from vimamba.heads import ScanFusion, TopDownHead
from vimamba.heads.blocks import ScanBlock
from vimamba.layers import ARRANGEMENTS, resize, ss2d_rules
from vimamba.models.vmamba import RULES as VMAMBA_RULES
from vimamba.models.vmamba import VMamba
from vimamba.networks.change.detector import ChangeDetector, encode_dates
from vimamba.networks.dense import EncodedNetwork
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.vss_encoder import load_vmamba
from vimamba.timm_layers import ConvNormAct as ConvNorm


class SemanticDecoder(nn.Module):
    """From the pyramid of one date to its finest level: add from coarse to fine, convolve, scan.

    Args:
        channels: Channels of the pyramid, fine to coarse.
        dim: C.
        **block: Arguments of `ScanBlock`.
    """

    def __init__(self, channels: Sequence[int], dim: int, **block: Any) -> None:
        super().__init__()
        *fine, coarsest = channels
        self.deepest = ScanBlock(coarsest, dim, **block)
        self.laterals = nn.ModuleList(ConvNorm(c, dim, 1, bias=True) for c in fine)
        self.smooths = nn.ModuleList(BasicBlock(dim, dim) for _ in channels)
        self.blocks = nn.ModuleList(ScanBlock(dim, dim, project=False, **block) for _ in fine)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i), ...] to (N, C, H_0, W_0)."""
        *fine, coarsest = features
        x = self.deepest(coarsest)
        for i in reversed(range(len(fine))):
            lateral = self.laterals[i](fine[i])
            x = self.blocks[i](self.smooths[i + 1](resize(x, lateral.shape[2:]) + lateral))
        return self.smooths[0](x)


class MambaBCD(EncodedNetwork, ChangeDetector):
    """MambaBCD, and the base of the other two.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images; pretrained filters are adapted.
        depths: Blocks per stage of the encoder.
        dims: Channels of the encoder's stages.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks of the encoder take in turn.
        drop_path_rate: Drop rate of the encoder's last block.
        decoder_dim: Channels of the decoders.
        decoder_scan_order: Scan order of all decoder blocks, on the grid of one date or of both.
        arrangements: How dates are joined for scans, some of `vimamba.layers.ARRANGEMENTS`.
        architecture: Registered name.
        start: The VMamba from which `pretrained` starts the encoder.
        pretrained: Start the encoder from published weights, except the norms of its features.
        pretrained_cfg_overlay: Their location, as for `timm.create_model`.
    """

    def __init__(
        self,
        num_classes: int = 2,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        scan_order: str | Sequence[str] = "cross",
        drop_path_rate: float = 0.2,
        decoder_dim: int = 128,
        decoder_scan_order: str = "cross",
        arrangements: Sequence[str] = ARRANGEMENTS,
        architecture: str = "mamba_bcd_tiny",
        start: str = "vmamba_tiny_s2l5",
        pretrained: bool = False,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    ) -> None:
        strides = [4 * 2**i for i in range(len(dims))]
        super().__init__(
            (strides[-1], strides[-1]),
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg={
                "architecture": architecture,
                "input_size": (in_chans, 256, 256),
                "license": "apache-2.0",
                "origin_url": "https://github.com/ChenHongruixuan/MambaCD",
                "paper_ids": "arXiv:2404.03425",
            },
        )
        self.encoder = VMamba(
            in_chans=in_chans,
            num_classes=0,
            depths=depths,
            dims=dims,
            expand=2.0,
            scan_order=scan_order,
            stage_norm=True,
            drop_path_rate=drop_path_rate,
        )
        block = {"scan_order": decoder_scan_order}
        self.fusion = ScanFusion(dims, dim=decoder_dim, arrangements=arrangements, **block)
        self.head = TopDownHead(
            self.fusion.channels, strides, self.change_classes(), width=decoder_dim
        )
        self.decoders = nn.ModuleList(
            SemanticDecoder(dims, decoder_dim, expand=2.0, **block) for _ in range(self.semantic)
        )
        if self.semantic:
            self.classifier = nn.Conv2d(decoder_dim, self.semantic_classes(), 1)
        if pretrained:
            fresh = tuple(name for name in self.encoder.state_dict() if "stage_norms." in name)
            overlay = {"in_chans": in_chans, "pretrained_cfg_overlay": pretrained_cfg_overlay}
            self.note_start(load_vmamba(self.encoder, start, fresh=fresh, **overlay))

    # decoders for a single date
    semantic = 0

    def change_classes(self) -> int:
        """Classes of the change map."""
        return self.num_classes

    def semantic_classes(self) -> int:
        """Classes of the map of one date."""
        return self.num_classes

    def predict(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Logits of the padded images; see `ChangeDetector.predict`."""
        return [self.head(self.fusion(*encode_dates(self.encode, before, after)))]

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return _rules("decoder", "main_clf")


class MambaSCD(MambaBCD):
    """MambaSCD; `num_classes` counts the semantic classes, the first of which is unchanged."""

    kind = "semantic"
    semantic = 2

    def change_classes(self) -> int:
        """No change, and change."""
        return 2

    def predict(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Logits of change, before and after; see `ChangeDetector.predict`."""
        dates = encode_dates(self.encode, before, after)
        each = [
            self.classifier(decoder(features))
            for decoder, features in zip(self.decoders, dates, strict=True)
        ]
        return [self.head(self.fusion(*dates)), *each]

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        semantic = {"decoder_T1": 0, "decoder_T2": 1}
        return _rules("decoder_bcd", "main_clf_cd", semantic, "aux_clf")


class MambaBDA(MambaBCD):
    """MambaBDA; `num_classes` counts the background and the levels of damage."""

    kind = "damage"
    semantic = 1

    def semantic_classes(self) -> int:
        """No building, and building."""
        return 2

    def predict(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Logits of buildings and of damage; see `ChangeDetector.predict`."""
        dates = encode_dates(self.encode, before, after)
        buildings = self.classifier(self.decoders[0](dates[0]))
        return [buildings, self.head(self.fusion(*dates))]

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return _rules("decoder_damage", "main_clf", {"decoder_building": 0}, "aux_clf")


Place = Callable[[re.Match[str]], str]


def _rules(
    decoder: str,
    classifier: str,
    semantic: Mapping[str, int] | None = None,
    semantic_classifier: str | None = None,
) -> Rules:
    """Rules for a file whose decoders and classifiers have these names.

    Levels are numbered from 4 (coarse) to 1 in the file, and from 0 (fine) here.
    """

    def level(match: re.Match[str]) -> int:
        return int(match["level"]) - 1

    def arranged(match: re.Match[str]) -> str:
        return f"fusion.levels.{level(match)}.blocks.{int(match['arrangement']) - 1}."

    rules: dict[str, Any] = {
        **{
            rf"encoder\.{theirs}": f"encoder.{ours}"
            if isinstance(ours, str)
            else _behind(lambda _: "encoder.", ours)
            for theirs, ours in VMAMBA_RULES.items()
        },
        **_block_rules(rf"{decoder}\.st_block_(?P<level>\d)(?P<arrangement>\d)\.", arranged),
        **_conv_rules(
            rf"{decoder}\.fuse_layer_(?P<level>\d)\.",
            lambda m: f"fusion.levels.{level(m)}.fuse.",
        ),
        rf"{decoder}\.smooth_layer_(?P<level>\d)\.(?P<leaf>.*)": lambda m: (
            f"head.smooths.{level(m)}.{m['leaf']}"
        ),
        rf"{classifier}\.(.*)": r"head.classifier.\1",
    }
    for theirs, number in (semantic or {}).items():
        rules |= _semantic_rules(rf"{theirs}\.", f"decoders.{number}.")
    if semantic_classifier:
        rules[rf"{semantic_classifier}\.(.*)"] = r"classifier.\1"
    return rules


def _semantic_rules(theirs: str, ours: str) -> dict[str, Any]:
    """Rules for a `SemanticDecoder`."""
    return {
        **_block_rules(theirs + r"st_block_4_semantic\.", lambda _: f"{ours}deepest."),
        **_block_rules(
            theirs + r"st_block_(?P<level>[123])_semantic\.",
            lambda m: f"{ours}blocks.{int(m['level']) - 1}.",
        ),
        **_conv_rules(
            theirs + r"trans_layer_(?P<level>\d)\.",
            lambda m: f"{ours}laterals.{int(m['level']) - 1}.",
        ),
        theirs + r"smooth_layer_(\d)_semantic\.(.*)": ours + r"smooths.\1.\2",
    }


def _behind(place: Place, replacement: str | Place) -> Place:
    """A replacement appended to a place."""
    if isinstance(replacement, str):
        return lambda match: place(match) + match.expand(replacement)
    return lambda match: place(match) + replacement(match)


def _block_rules(theirs: str, place: Place) -> dict[str, Any]:
    """Rules for a `ScanBlock`."""
    inner = {
        r"0\.(?P<leaf>weight|bias)": r"proj.\g<leaf>",
        **ss2d_rules(r"\d\.op\.", "block.mixer."),
        r"\d\.norm\.(?P<leaf>.*)": r"block.norm1.\g<leaf>",
        r"\d\.(?P<leaf>(?:norm2|mlp)\..*)": r"block.\g<leaf>",
    }
    return {theirs + pattern: _behind(place, ours) for pattern, ours in inner.items()}


def _conv_rules(theirs: str, place: Place) -> dict[str, Any]:
    """Rules for a convolution with a BatchNorm."""
    inner = {r"0\.(?P<leaf>.*)": r"conv.\g<leaf>", r"1\.(?P<leaf>.*)": r"bn.\g<leaf>"}
    return {theirs + pattern: _behind(place, ours) for pattern, ours in inner.items()}


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"depths": (2, 2, 4, 2), "drop_path_rate": 0.2, "start": "vmamba_tiny_s2l5"},
    "small": {"depths": (2, 2, 15, 2), "drop_path_rate": 0.3, "start": "vmamba_small_s2l15"},
    "base": {
        "depths": (2, 2, 15, 2),
        "dims": (128, 256, 512, 1024),
        "drop_path_rate": 0.6,
        "start": "vmamba_base_s2l15",
    },
}


def _create(cls: type[Any], name: str, img_size: int | None, **kwargs: Any) -> Any:
    """A network of published size, for images of any size."""
    return cls(**{"architecture": name, **_SIZES[name.rpartition("_")[2]], **kwargs})


@register_network(task="change")
def mamba_bcd_tiny(*, img_size: int | None = None, **kwargs: Any) -> MambaBCD:
    """MambaBCD-T: 32.6 M parameters."""
    return _create(MambaBCD, "mamba_bcd_tiny", img_size, **kwargs)


@register_network(task="change")
def mamba_bcd_small(*, img_size: int | None = None, **kwargs: Any) -> MambaBCD:
    """MambaBCD-S: 54.0 M parameters."""
    return _create(MambaBCD, "mamba_bcd_small", img_size, **kwargs)


@register_network(task="change")
def mamba_bcd_base(*, img_size: int | None = None, **kwargs: Any) -> MambaBCD:
    """MambaBCD-B: 92.4 M parameters."""
    return _create(MambaBCD, "mamba_bcd_base", img_size, **kwargs)


@register_network(task="change")
def mamba_scd_tiny(*, img_size: int | None = None, **kwargs: Any) -> MambaSCD:
    """MambaSCD-T: 37.1 M parameters; by default the seven classes of SECOND."""
    return _create(MambaSCD, "mamba_scd_tiny", img_size, **{"num_classes": 7, **kwargs})


@register_network(task="change")
def mamba_scd_small(*, img_size: int | None = None, **kwargs: Any) -> MambaSCD:
    """MambaSCD-S: 58.5 M parameters; by default the seven classes of SECOND."""
    return _create(MambaSCD, "mamba_scd_small", img_size, **{"num_classes": 7, **kwargs})


@register_network(task="change")
def mamba_scd_base(*, img_size: int | None = None, **kwargs: Any) -> MambaSCD:
    """MambaSCD-B: 97.0 M parameters; by default the seven classes of SECOND."""
    return _create(MambaSCD, "mamba_scd_base", img_size, **{"num_classes": 7, **kwargs})


@register_network(task="change")
def mamba_bda_tiny(*, img_size: int | None = None, **kwargs: Any) -> MambaBDA:
    """MambaBDA-T: 34.9 M parameters; by default background and the four levels of xBD."""
    return _create(MambaBDA, "mamba_bda_tiny", img_size, **{"num_classes": 5, **kwargs})


@register_network(task="change")
def mamba_bda_small(*, img_size: int | None = None, **kwargs: Any) -> MambaBDA:
    """MambaBDA-S: 56.3 M parameters; by default background and the four levels of xBD."""
    return _create(MambaBDA, "mamba_bda_small", img_size, **{"num_classes": 5, **kwargs})


@register_network(task="change")
def mamba_bda_base(*, img_size: int | None = None, **kwargs: Any) -> MambaBDA:
    """MambaBDA-B: 94.7 M parameters; by default background and the four levels of xBD."""
    return _create(MambaBDA, "mamba_bda_base", img_size, **{"num_classes": 5, **kwargs})
