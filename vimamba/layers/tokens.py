"""From images to tokens: patches, and class tokens on scan paths."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import lecun_normal_
from torch import Tensor, nn

from vimamba.layers.tracing import expect_size


def to_pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Height and width, from both or from a single side."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


class GridEmbed(nn.Module):
    """Base of patch embeddings: sizes of images and of their token grids.

    Args:
        img_size: Height and width of the images.
        patch_size, stride: Minimum pixels that a token reads, and distance between tokens.
        dynamic_img_size: Take images of any size.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        stride: int,
        *,
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = to_pair(patch_size)
        self.stride = to_pair(stride)
        self.strict_img_size = not dynamic_img_size
        self.set_input_size(img_size)

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """Set `img_size`, `grid_size` and `num_patches`."""
        if min(self.dynamic_feat_size(img_size)) < 1:
            raise ValueError(f"img_size={img_size} is smaller than a patch {self.patch_size}")
        self.img_size = img_size
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Grid size for an image size."""
        return (
            (img_size[0] - self.patch_size[0]) // self.stride[0] + 1,
            (img_size[1] - self.patch_size[1]) // self.stride[1] + 1,
        )

    def img_size_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The largest image with this grid, in whole strides beyond a patch."""
        (height, width), stride, patch = grid, self.stride, self.patch_size
        size = (height - 1) * stride[0] + patch[0], (width - 1) * stride[1] + patch[1]
        # a grid whose last patches are completed has more cells
        more = self.dynamic_feat_size(size)
        return (
            size[0] - (more[0] - height) * stride[0],
            size[1] - (more[1] - width) * stride[1],
        )

    def checked(self, x: Tensor) -> Tensor:
        """Check the size of images (N, C_in, H, W)."""
        if self.strict_img_size and torch.jit.is_tracing():
            advice = "set_input_size() before tracing changes it, dynamic_img_size=True takes any"
            x = expect_size(x, list(self.img_size), advice)
        elif self.strict_img_size:
            torch._assert(
                x.shape[2] == self.img_size[0],
                f"image height must be {self.img_size[0]}; set_input_size() changes it, "
                "dynamic_img_size=True takes any",
            )
            torch._assert(
                x.shape[3] == self.img_size[1],
                f"image width must be {self.img_size[1]}; set_input_size() changes it, "
                "dynamic_img_size=True takes any",
            )
        return x


class PatchEmbed(GridEmbed):
    """Patches to tokens, overlapping if `stride` is below `patch_size`."""

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        stride: int,
        in_chans: int,
        dim: int,
        *,
        dynamic_img_size: bool = False,
        **dd: Any,
    ) -> None:
        super().__init__(img_size, patch_size, stride, dynamic_img_size=dynamic_img_size)
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=stride, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, h, w, C)."""
        return self.proj(self.checked(x)).permute(0, 2, 3, 1)


class PaddedPatchEmbed(PatchEmbed):
    """Adjacent patches; those that the image does not fill are padded with zeros."""

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Grid of an image of this size."""
        return -(-img_size[0] // self.patch_size[0]), -(-img_size[1] // self.patch_size[1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, h, w, C)."""
        x = self.checked(x)
        x = F.pad(x, (0, -x.shape[3] % self.patch_size[1], 0, -x.shape[2] % self.patch_size[0]))
        return self.proj(x).permute(0, 2, 3, 1)


def init_patches_(embed: nn.Module) -> None:
    """Initialize a patch convolution as in Vim."""
    proj: nn.Conv2d = embed.proj  # type: ignore[assignment]
    lecun_normal_(proj.weight)
    nn.init.zeros_(proj.bias)  # type: ignore[arg-type]


def insert_tokens(x: Tensor, tokens: Tensor, places: list[int]) -> Tensor:
    """Insert tokens (N, P, C) into x (N, L, C) at indices `places`, ascending, of the result.

    Returns:
        (N, P + L, C).
    """
    parts: list[Tensor] = []
    start = 0
    for i, place in enumerate(places):
        parts.append(x[:, start : place - i])
        parts.append(tokens[:, i : i + 1])
        start = place - i
    parts.append(x[:, start:])
    return torch.cat(parts, dim=1)


def pick_tokens(x: Tensor, places: list[int]) -> Tensor:
    """The tokens of x (N, P + L, C) at P `places`: (N, P, C)."""
    if len(places) == 0:
        return x[:, :0]
    # no index tensor, which a trace would store as a constant
    return torch.cat([x[:, place : place + 1] for place in places], dim=1)


def split_tokens(x: Tensor, places: list[int]) -> tuple[Tensor, Tensor]:
    """Split x (N, P + L, C) into tokens (N, L, C) and those at P ascending `places`, (N, P, C)."""
    if len(places) == 0:
        return x, x[:, :0]
    parts: list[Tensor] = []
    start = 0
    for place in places:
        parts.append(x[:, start:place])
        start = place + 1
    parts.append(x[:, start:])
    return torch.cat(parts, dim=1), pick_tokens(x, places)


def insert_into_paths(paths: Tensor, places: list[int], num_patches: int) -> Tensor:
    """Extend every path to visit tokens that were inserted among those of the grid.

    A forward path visits an inserted token after the fraction of its cells that precede the token;
    a backward path counts from its end, so that the reverse of a path stays its reverse. Padding
    steps do not count.

    Args:
        paths: (K, T) over a grid of L tokens, or (N, K, T).
        places: Indices of the P inserted tokens, ascending, among all P + L.
        num_patches: L.

    Returns:
        (K, P + T), or (N, K, P + T).
    """
    if len(places) == 0:
        return paths
    length = paths.shape[-1]
    # no list of numbers, which a trace would store as constants
    place = torch.cat([torch.full((1,), p, dtype=torch.int64, device=paths.device) for p in places])
    order = torch.arange(len(places), dtype=torch.int64, device=paths.device)
    ahead = place - order  # patches before each token
    shifted = paths + (paths.unsqueeze(-1) >= ahead).sum(-1)
    # patches up to and including each step, and from it on
    seen = (paths >= 0).cumsum(-1)
    total = seen[..., -1:]
    rest = total - seen + (paths >= 0)
    first, last = (seen < 1).sum(-1, keepdim=True), (seen < total).sum(-1, keepdim=True)
    # a path may visit nothing
    ends = [paths.gather(-1, end.clamp(max=length - 1)) for end in (first, last)]
    # rounded so that a token in the middle is visited after half of any path's tokens
    share = (total * ahead + (num_patches - 1) // 2) // num_patches
    some, share = (share > 0).to(share.dtype), share.unsqueeze(-1)
    forward = (seen.unsqueeze(-2) < share).sum(-1) + some
    backward = length - (rest.unsqueeze(-2) < share).sum(-1) - some
    turn = torch.where(
        ends[0] > ends[1], backward + len(places) - 1 - order, forward + order
    ).unsqueeze(-2)

    step = torch.arange(length + len(places), dtype=torch.int64, device=paths.device).unsqueeze(-1)
    before = (step.squeeze(-1) - (turn < step).sum(-1)).clamp(0, length - 1)
    inserted = torch.where(turn == step, place, -1).amax(-1)
    return torch.where(inserted >= 0, inserted, shifted.gather(-1, before))
