"""Channel gates computed from the mean token, called BiAttn in EfficientVMamba and LocalMamba.

LocalMamba (Huang et al. 2024, arXiv:2403.09338, section 3.4) shows a gate on channels and one on
tokens; the official code of both networks only has the first.

Sizes: L tokens, C channels.
"""

from typing import Any

from torch import Tensor, nn


class ChannelGate(nn.Module):
    """Scale every channel by a gate computed from the mean of the normalized tokens.

    Args:
        dim: C.
        reduction: C divided by the channels between the two layers.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, *, reduction: int = 8, **dd: Any) -> None:
        super().__init__()
        hidden = max(dim // reduction, 1)
        self.norm = nn.LayerNorm(dim, **dd)
        self.reduce = nn.Linear(dim, hidden, **dd)
        self.act = nn.GELU()
        self.select = nn.Linear(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(..., L, C) to the same shape."""
        mean = self.norm(x).mean(-2, keepdim=True)
        return x * self.select(self.act(self.reduce(mean))).sigmoid()


def channel_gate_rules(theirs: str, ours: str) -> dict[str, str]:
    """Rules for one gate, named as in both official codes.

    Args:
        theirs: Pattern of everything before a parameter's name.
        ours: Its replacement.
    """
    names = {"norm": "norm", "global_reduce": "reduce", "channel_select": "select"}
    return {
        rf"{theirs}{name}\.(?P<leaf>.*)": rf"{ours}{our}.\g<leaf>" for name, our in names.items()
    }
