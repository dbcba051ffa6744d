"""Custom heads, by name."""

from typing import ClassVar

import pytest
import torch
from torch import nn

import vimamba
from vimamba.heads import FPNHead, find_head, registry


class Finest(nn.Module):
    """A projection of the finest level."""

    finest_stride: ClassVar[int] = 8

    def __init__(self, channels, strides, num_classes):
        super().__init__()
        self.project = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, features):
        return self.project(features[0])


@pytest.fixture(autouse=True)
def own_heads(monkeypatch):
    """Remove what a test registered."""
    monkeypatch.setattr(registry, "_HEADS", dict(registry._HEADS))


def test_a_custom_head_works_on_any_backbone():
    assert vimamba.register_head(Finest) is Finest
    assert "Finest" in vimamba.list_heads()
    net = vimamba.create_segmenter("test_vmamba", "Finest", num_classes=2)
    assert net.encoder.strides[0] == 8
    assert net(torch.rand(1, 3, 40, 72)).shape == (1, 2, 40, 72)


def test_a_name_is_given_once():
    vimamba.register_head(name="own")(Finest)
    with pytest.raises(ValueError, match="head 'own' is already registered; replace=True"):
        vimamba.register_head(Finest, name="own")
    vimamba.register_head(FPNHead, name="own", replace=True)
    with pytest.warns(UserWarning, match="head 'fpn' replaces vimamba's own") as found:
        vimamba.register_head(Finest, name="fpn")
    assert found[0].filename == __file__
    assert find_head("fpn") is Finest


def test_an_unknown_name_gets_suggestions():
    with pytest.raises(
        ValueError, match="head='fpnn' is unknown; close names are fpn; register your own"
    ):
        find_head("fpnn")
    with pytest.raises(ValueError, match=r"head='x' is unknown; choose from \['attention_unet', "):
        find_head("x")


@pytest.mark.parametrize("stride", [None, 0, "4"])
def test_a_head_says_how_fine_a_level_it_reads(stride):
    head = type("Head", (nn.Module,), {} if stride is None else {"finest_stride": stride})
    with pytest.raises(ValueError, match=f"finest_stride={stride!r} of head 'Head' must be"):
        vimamba.register_head(head)
