"""Records a network's scans on one image: their inputs, and the positions of their tokens.

A selective scan with its step sizes, B and C held fixed is linear in its tokens. `Scan.apply` is
this operator and `Scan.adjoint` its transpose, by the operator's own backward pass; either costs as
much as a scan, and no tokens x tokens matrix is formed.

Sizes: M samples of the operator's batch (windows, or paths), K paths of T steps, L tokens, D
channels, H heads, S states, h and w grid, P prefix tokens.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vimamba.explain.errors import ExplainError
from vimamba.layers import SelectiveScan, StateSpaceDuality
from vimamba.models._backbone import Backbone
from vimamba.models._plain import PlainBackbone
from vimamba.models.mambavision import WindowStage
from vimamba.models.msvmamba import MultiscaleSS2D
from vimamba.models.plainmamba import SnakeMixer
from vimamba.networks.dense import DenseNetwork
from vimamba.scan_orders import grid_of

# from tokens, B and C to results
Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scan:
    """One call of a scan on one image.

    Attributes:
        layer: Name of the module in the network.
        grid: (h, w), of the map of the tokens.
        num_prefix: P.
        cells: (M, K, L): the cell of each token in h * w, h * w + i for prefix token i, or -1 for
            padding.
        paths: (K, T) or (M, K, T): indices of tokens, -1 is a zero; None visits all in order.
        is_window: The samples are windows of one map; else they are paths.
        shape: Shape of the tokens, (M, K, L, D).
        steps: (M, K, L, D or H): step sizes, after the softplus.
        operator: Function from tokens (M, K, L, D), B and C to the results, without the skip.
        B, C: (M, K, L, S).
    """

    layer: str
    grid: tuple[int, int]
    num_prefix: int
    cells: Tensor
    paths: Tensor | None
    is_window: bool
    shape: tuple[int, int, int, int]
    steps: Tensor
    operator: Operator = field(repr=False)
    B: Tensor = field(repr=False)
    C: Tensor = field(repr=False)

    @property
    def num_cells(self) -> int:
        """Number of cells of the grid and prefix tokens."""
        return self.grid[0] * self.grid[1] + self.num_prefix

    def apply(self, u: Tensor) -> Tensor:
        """Apply the scan to tokens (M, K, L, D) with its recorded step sizes, B and C."""
        return self.operator(u, self.B, self.C)

    def adjoint(self, y: Tensor) -> Tensor:
        """The transposed operator: from results (M, K, L, D) to tokens (M, K, L, D)."""
        with torch.enable_grad():
            u = torch.zeros(self.shape, dtype=y.dtype, device=y.device, requires_grad=True)
            return torch.autograd.grad(self.apply(u), u, y)[0]

    def majorant(self) -> "Scan":
        """The same scan with |B| and |C|, whose matrix bounds that of this scan."""
        return replace(self, B=self.B.abs(), C=self.C.abs())

    def spread(self, values: Tensor) -> Tensor:
        """Values (..., cells) to all tokens, (..., M, K, L); 0 for padding."""
        padded = F.pad(values, (0, 1))
        return padded[..., torch.where(self.cells < 0, self.num_cells, self.cells)]

    def gather(self, values: Tensor) -> Tensor:
        """Sum tokens (M, K, L, D) in every cell: (paths, cells, D)."""
        samples, count, _, channels = values.shape
        target = torch.where(self.cells < 0, self.num_cells, self.cells)
        total = values.new_zeros((samples, count, self.num_cells + 1, channels))
        total.scatter_add_(2, target[..., None].expand(values.shape), values)
        total = total[:, :, :-1]
        return total.sum(0) if self.is_window else total.flatten(0, 1)

    def walk(self) -> Tensor:
        """(M, K, T): the cell of every step, -1 for a zero."""
        if self.paths is None:
            return self.cells
        paths = self.paths.expand(*self.cells.shape[:2], -1)
        return F.pad(self.cells, (0, 1), value=-1).gather(2, paths % (self.shape[2] + 1))


def observe_scans(model: nn.Module, image: Tensor) -> list[Scan]:
    """Run a network on one image and record the inputs of its scans.

    Args:
        model: In eval mode.
        image: (1, C, H, W).

    Returns:
        Scans over more than one cell, in order of execution.

    Raises:
        ExplainError: The network has no selective scan.
    """
    observer = _Observer(model)
    with torch.no_grad(), observer.watch():
        model(image)
    scans = [scan for scan in observer.scans if scan.grid != (1, 1)]
    if not scans:
        raise ExplainError(
            f"model={type(model).__name__} has no selective scan on a map, so neither hidden "
            "attention nor step sizes nor paths; cam and erf work without one"
        )
    return scans


def as_input(model: nn.Module, image: Tensor) -> Tensor:
    """An image (C, H, W), or a batch of one, as (1, C, H, W), padded as the network itself would.

    Raises:
        ExplainError: It is not an image, or a value of it is not finite, or the model is in
            training mode.
    """
    if model.training:
        raise ExplainError(
            f"model={type(model).__name__} is in training mode; call model.eval() first"
        )
    if not isinstance(image, Tensor):
        raise ExplainError(f"image is {type(image).__name__}, and must be a tensor, (C, H, W)")
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != 1:
        raise ExplainError(
            f"image of shape {tuple(image.shape)} must be one image, (C, H, W) or (1, C, H, W)"
        )
    if not image.isfinite().all():
        raise ExplainError("image must have finite values only")
    weight = next(model.parameters())
    image = image.detach().to(weight.device, weight.dtype)
    return model.pad(image) if isinstance(model, DenseNetwork) else image


def find_backbone(model: nn.Module) -> Backbone | None:
    """The first of our backbones in a network, possibly the network itself."""
    return next((part for part in model.modules() if isinstance(part, Backbone)), None)


class _Observer(TorchDispatchMode):
    """Records scans by hooks, and the path tables that mixers request."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.scans: list[Scan] = []
        self._modules = dict(model.named_modules())
        self._names = {module: name for name, module in self._modules.items()}
        # the last grid and path table, over all orders and of each
        self._last: tuple[tuple[int, int], Tensor] | None = None
        self._by_order: dict[str, tuple[tuple[int, int], Tensor]] = {}
        # the paths of PlainMamba's mixer, which it computes itself
        self._snake: Tensor | None = None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Record within this context."""
        hook = nn.modules.module.register_module_forward_pre_hook(self._enter)
        try:
            with self:
                yield
        finally:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator; record the table of a scan order."""
        output = func(*args, **(kwargs or {}))
        if func.name() == "vimamba::scan_paths":
            grid = grid_of(args[0], args[2] if len(args) > 2 else None)
            if len(grid) == 2:
                self._last = self._by_order[args[1]] = ((int(grid[0]), int(grid[1])), output)
        return output

    def _enter(self, module: nn.Module, args: Any) -> None:
        if isinstance(module, SnakeMixer):
            self._snake = args[1]
        if isinstance(module, SelectiveScan | StateSpaceDuality) and module in self._names:
            # outside this dispatch mode, which would otherwise see these operators
            with torch._C._DisableTorchDispatch():
                self._record(self._names[module], module, args)

    def _record(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._last is None:  # not a scan of a map
            return
        u, dt, B, C, paths = args[:5]
        samples, count, length = dt.shape[:3]
        if isinstance(module, SelectiveScan):
            operator, steps = _selective(module, dt, paths)
            channels = u.shape[-1]
        else:
            operator, steps = _duality(cast(StateSpaceDuality, module), u, dt, paths)
            channels = u.shape[-2] * u.shape[-1]
        grid, cells, is_window = self._place(name, samples, count, length)
        backbone = self._backbone_of(name)
        prefix = backbone.num_prefix_tokens if isinstance(backbone, PlainBackbone) else 0
        self.scans.append(
            Scan(
                layer=name,
                grid=grid,
                num_prefix=prefix,
                cells=cells.to(u.device).expand(samples, count, length),
                paths=paths,
                is_window=is_window,
                shape=(samples, count, length, channels),
                steps=steps,
                operator=operator,
                B=B,
                C=C,
            )
        )

    def _parents(self, name: str) -> Iterator[nn.Module]:
        while name:
            name = name.rpartition(".")[0]
            yield self._modules[name]

    def _backbone_of(self, name: str) -> nn.Module | None:
        return next((part for part in self._parents(name) if isinstance(part, Backbone)), None)

    def _place(
        self, name: str, samples: int, count: int, length: int
    ) -> tuple[tuple[int, int], Tensor, bool]:
        """The grid, the cell of every token, and whether the samples are windows of it."""
        assert self._last is not None
        grid, table = self._last
        for parent in self._parents(name):
            if isinstance(parent, WindowStage):
                grid, table = self._by_order[parent.order]
                return grid, table.reshape(samples, 1, length), True
            if isinstance(parent, SnakeMixer):
                assert self._snake is not None
                return grid, self._snake[:, None], False
            if isinstance(parent, MultiscaleSS2D) and ".half_scan." in name:
                return grid, table[-parent.num_half :].reshape(1, 1, length), False
        cells = torch.full((length,), -1, dtype=torch.int64, device="cpu")
        patches = grid[0] * grid[1]
        backbone = self._backbone_of(name)
        places = backbone.places(patches) if isinstance(backbone, PlainBackbone) else []
        others = [token for token in range(patches + len(places)) if token not in set(places)]
        cells[others] = torch.arange(patches, dtype=torch.int64, device="cpu")
        cells[places] = torch.arange(
            patches, patches + len(places), dtype=torch.int64, device="cpu"
        )
        return grid, cells, False


def _selective(scan: SelectiveScan, dt: Tensor, paths: Tensor | None) -> tuple[Operator, Tensor]:
    """The operator of a selective scan, and its step sizes."""
    delta, weight = scan.dt_proj(dt)
    delta = delta if weight is None else torch.einsum("nklr,kdr->nkld", delta, weight)
    delta = F.softplus(delta + scan.dt_bias[:, None] * scan.bias_scale)
    A = -torch.exp(scan.A_log)

    def operator(u: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return torch.ops.vimamba.selective_scan(u, delta, A, B, C, paths=paths, merge=False)

    return operator, delta


def _duality(
    scan: StateSpaceDuality, tokens: Tensor, dt: Tensor, paths: Tensor | None
) -> tuple[Operator, Tensor]:
    """The operator of a scan with one decay per head, and its step sizes."""
    heads = tuple(tokens.shape[-2:])
    dt = F.softplus(dt + scan.dt_bias[:, None])
    A = -torch.exp(scan.A_log)

    def operator(u: Tensor, B: Tensor, C: Tensor) -> Tensor:
        y = torch.ops.vimamba.ssd(u.unflatten(-1, heads), dt, A, B, C, paths=paths, merge=False)
        return y[0].flatten(-2)

    return operator, dt
