"""The Mamba mixer along K paths, used in the blocks of Vim and its descendants.

Mamba (arXiv:2312.00752, figure 3) reads one sequence with a causal convolution and a selective
scan. Vim (arXiv:2401.09417, algorithm 1) reads the same tokens along two paths, each with its own
convolution and scan parameters, and averages the results. Here there are K arbitrary paths.

Sizes: N batch, L tokens, C channels, D = expand * C, K paths of T steps, S states, W taps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vimamba.layers.own_gradients import RmsNorm, multiply_paths
from vimamba.layers.scan import SelectiveScan, check_sizes
from vimamba.layers.ssm import stacked_weights
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.reading import CheckpointError
from vimamba_kernels.path_conv.op import convolve_tokens


class MambaMixer(nn.Module):
    """Causal convolution and selective scan along each path, gated and averaged.

    Args:
        dim: C.
        num_paths: K.
        d_state: S.
        expand: D / C.
        d_conv: W.
        dt_rank: Rank of the step-size projection; C / 16 rounded up if None.
        average_paths: Divide the sum over the paths by K.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_paths: int = 2,
        d_state: int = 16,
        expand: float = 2.0,
        d_conv: int = 4,
        dt_rank: int | None = None,
        average_paths: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        check_sizes(dim=dim, num_paths=num_paths, d_state=d_state, d_conv=d_conv, dt_rank=dt_rank)
        dd = {"device": device, "dtype": dtype}
        inner = int(expand * dim)
        self.num_paths = num_paths
        self.d_state = d_state
        self.d_conv = d_conv
        self.dt_rank = dt_rank
        self.average_paths = average_paths

        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, **dd)
        self.conv = nn.Conv1d(
            num_paths * inner, num_paths * inner, d_conv, groups=num_paths * inner, **dd
        )
        rows = self.dt_rank + 2 * d_state
        self.x_proj = nn.ModuleList(
            nn.Linear(inner, rows, bias=False, **dd) for _ in range(num_paths)
        )
        self.scan = SelectiveScan(
            inner, num_paths=num_paths, d_state=d_state, dt_rank=self.dt_rank, **dd
        )
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C) along paths to (N, L, C).

        Args:
            x: All tokens; a class token is one of them.
            paths: (K, T), or (N, K, T) with separate paths for every image, over all L tokens:
                `insert_class_token` adds a class token to paths over a grid.
        """
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        u = self.convolve(x, paths)
        dt, B, C = self.project(u)
        y = self.scan(u, dt, B, C, paths, gate)
        y = self.out_proj(y)
        return y / self.num_paths if self.average_paths else y

    def project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scan inputs dt, B and C, (N, K, L, ...), from each path's tokens (N, K, L, D)."""
        sizes = [self.dt_rank, self.d_state, self.d_state]
        dt, B, C = self._project_paths(u).split(sizes, dim=-1)
        return dt, B, C

    def _project_paths(self, u: Tensor) -> Tensor:
        # TorchScript cannot inspect its modules, and calls them
        if not torch.jit.is_scripting():
            weights = stacked_weights(self.x_proj)
            if weights is not None:
                return multiply_paths(u, weights)
        # not u[:, k], each of whose gradients would be a tensor of all paths
        tokens = u.unbind(1)
        projected = []
        for k, x_proj in enumerate(self.x_proj):
            projected.append(x_proj(tokens[k]))
        return torch.stack(projected, dim=1)

    def convolve(self, x: Tensor, paths: Tensor) -> Tensor:
        """Causal depthwise convolution and SiLU along each path: (N, L, D) to (N, K, L, D).

        Step t sees the tokens of steps t - W + 1 .. t; entries of -1 read zero and write nothing.
        """
        bias = self.conv.bias
        assert bias is not None
        weight = self.conv.weight.view(self.num_paths, -1, self.d_conv)
        return convolve_tokens(x, weight, bias.view(self.num_paths, -1), paths, "silu")


class VimBlock(nn.Module):
    """Pre-norm residual block: RMSNorm, then the Mamba mixer along the paths."""

    def __init__(self, dim: int, *, drop_path: float, dd: dict[str, Any], **mixer: Any) -> None:
        super().__init__()
        self.norm = RmsNorm(dim, eps=1e-5, **dd)
        self.mixer = MambaMixer(dim, **mixer, **dd)
        self.drop_path = DropPath(drop_path)

    def update(self, x: Tensor, paths: Tensor) -> Tensor:
        """The block's residual update of the tokens (N, L, C), with drop path."""
        return self.mixer(self.norm(x), paths)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C) along paths (K, T) or (N, K, T) to (N, L, C)."""
        return x + self.drop_path(self.update(x, paths))


def make_vim_block(
    dim: int, _number: int, drop_path: float, num_paths: int, dd: dict[str, Any], **mixer: Any
) -> VimBlock:
    """One of a stack of blocks that differ only in their paths and drop rates."""
    return VimBlock(dim, drop_path=drop_path, dd=dd, num_paths=num_paths, **mixer)


def init_vim_blocks_(blocks: nn.ModuleList) -> None:
    """As in Vim: only the first path gets Mamba's step sizes; outputs shrink with depth."""
    for block in blocks:
        mixer: MambaMixer = block.mixer  # type: ignore[assignment]
        with torch.no_grad():
            mixer.scan.dt_bias[1:].zero_()
            nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
            mixer.out_proj.weight /= math.sqrt(len(blocks))


def mamba_rules(theirs: str, ours: str, suffixes: Sequence[str]) -> dict[str, str]:
    """Rules that rename the parameters of one mixer from the names used since Vim.

    A tensor of path k that is a part of one of our parameters gets the ending "@k"; `join_branches`
    then joins the parts.

    Args:
        theirs: Pattern of everything before a parameter's name.
        ours: Its replacement.
        suffixes: Suffixes of each path's parameter names, e.g. ("", "_b").
    """
    rules = {f"{theirs}(?P<leaf>(?:in_proj|out_proj)\\..*)": f"{ours}\\g<leaf>"}
    for k, suffix in enumerate(suffixes):
        # in A's name, a letter suffix is in the middle, a number suffix at the end
        decay = f"A_log{suffix}" if suffix.strip("_").isdigit() else f"A{suffix}_log"
        names = {
            rf"x_proj{suffix}\.weight": f"x_proj.{k}.weight",
            rf"dt_proj{suffix}\.weight": f"scan.dt_proj.{k}.weight",
            rf"dt_proj{suffix}\.bias": f"scan.dt_bias@{k}",
            rf"conv1d{suffix}\.weight": f"conv.weight@{k}",
            rf"conv1d{suffix}\.bias": f"conv.bias@{k}",
            decay: f"scan.A_log@{k}",
            f"D{suffix}": f"scan.D@{k}",
        }
        rules.update({f"{theirs}{name}": f"{ours}{our}" for name, our in names.items()})
    return rules


def join_branches(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the parts of parameters that `mamba_rules` marked by path.

    Raises:
        CheckpointError: A path's part is missing.
    """
    state: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state_dict.items():
        name, _, branch = key.partition("@")
        if branch:
            parts.setdefault(name, {})[int(branch)] = value
        else:
            state[name] = value
    count = max((max(part) + 1 for part in parts.values()), default=0)
    for name, part in parts.items():
        if len(part) < count:
            raise CheckpointError(f"{name!r} exists for only {len(part)} of {count} paths")
        join = torch.cat if ".conv." in name else torch.stack
        state[name] = join([part[k] for k in range(count)])
    return state
