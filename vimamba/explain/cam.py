"""Class activation maps: Grad-CAM and related methods, through the package grad-cam.

This module chooses the layers whose maps are weighted, and converts each family's tokens to maps.

Sizes: N batch, H and W image, h and w grid, P prefix tokens, L patches, C channels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimamba.explain.errors import ExplainError
from vimamba.explain.scans import as_input, find_backbone, observe_scans
from vimamba.layers import split_tokens
from vimamba.models._plain import PlainBackbone
from vimamba.models._staged import StagedBackbone

# methods for weighting the channels, by their classes in pytorch_grad_cam
METHODS = {
    "gradcam": "GradCAM",  # arXiv:1610.02391
    "gradcam++": "GradCAMPlusPlus",  # arXiv:1710.11063
    "xgradcam": "XGradCAM",  # arXiv:2008.02312
    "hirescam": "HiResCAM",  # arXiv:2011.08891
    "layercam": "LayerCAM",  # doi:10.1109/TIP.2021.3089943
    "eigencam": "EigenCAM",  # arXiv:2008.00299, class-agnostic
    "eigengradcam": "EigenGradCAM",
}
# minimum cells of the shorter side of a map with useful resolution
FEWEST_CELLS = 4


def cam(
    model: nn.Module,
    image: Tensor,
    *,
    target: int | None = None,
    where: Tensor | tuple[int, int] | None = None,
    method: str = "gradcam",
    layers: Sequence[str] | None = None,
) -> NDArray[np.float32]:
    """Locate the evidence for a class in an image.

    The map is from the deepest layer with useful spatial resolution: in a pyramid the last stage
    with at least 4 x 4 cells; in a plain network the last block, or the last but one if the
    classifier reads a class token or registers, since patches no longer affect these after the last
    block.

    Args:
        model: A classifier or a segmentation network in eval mode.
        image: (C, H, W), preprocessed.
        target: Class; by default the predicted one, for segmentation the one of most pixels, or the
            one at the point `where`.
        where: For segmentation: the pixels whose logits count, a mask (H, W), or one pixel (y, x).
            By default those predicted as the class.
        method: One of `METHODS`.
        layers: Names of modules whose outputs to use as maps instead; the mean if there are
            several. Their outputs must be (N, C, h, w), or in the layout of this backbone.

    Returns:
        (H, W) in [0, 1].

    Raises:
        ExplainError: An argument does not fit the network.
        ImportError: grad-cam is not installed.
    """
    if method not in METHODS:
        raise ExplainError(f"method={method!r} is unknown; choose from {sorted(METHODS)}")
    import pytorch_grad_cam

    size = image.shape[-2:]
    image = as_input(model, image)
    if isinstance(where, Tensor) and where.shape != size:
        raise ExplainError(
            f"where of shape {tuple(where.shape)} must be a mask of the image's {tuple(size)}"
        )
    score = choose_score(model, image, target, where)
    names, to_map = find_maps(model, image) if layers is None else (layers, None)
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ExplainError(f"layers={unknown[0]!r} is not a module of model={type(model).__name__}")
    called = called_modules(model, image)
    for name in names:
        if modules[name] not in called:
            raise ExplainError(
                f"layers={name!r} has no output: model={type(model).__name__} does not call it, "
                "perhaps its parts"
            )
    if to_map is None:
        to_map = _guess_maps(model, image)
    with _untouched(model):
        engine: Any = getattr(pytorch_grad_cam, METHODS[method])
        wanted = [modules[name] for name in names]
        with engine(model, wanted, reshape_transform=to_map) as explain:
            made = explain(image.requires_grad_(), [score])
    return made[0, : size[0], : size[1]].astype(np.float32)


def choose_score(
    model: nn.Module,
    image: Tensor,
    target: int | None,
    where: Tensor | tuple[int, int] | None,
) -> Callable[[Tensor], Tensor]:
    """The score to explain, from the logits of one image, (classes,) or (classes, H, W).

    Raises:
        ExplainError: The network does not return logits of one image, or the class or point is
            invalid.
    """
    with torch.no_grad():
        logits = model(image)
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 4):
        raise ExplainError(
            f"model={type(model).__name__} returns neither logits of an image nor of its pixels"
        )
    logits = logits[0]
    count = len(logits)
    # one logit distinguishes two classes
    classes = 2 if logits.ndim == 3 and count == 1 else count
    check_class(target, classes)
    if logits.ndim == 1:
        if where is not None:
            raise ExplainError("where is for segmentation; a classifier has one output per image")
        chosen = int(logits.argmax()) if target is None else target
        return lambda output: output[chosen]
    predicted = (logits[0] > 0).long() if count == 1 else logits.argmax(0)
    pixels, chosen = _choose_pixels(predicted, target, where)
    sign = -1 if classes > count and chosen == 0 else 1
    row = min(chosen, count - 1)
    return lambda output: sign * output[row][pixels].mean()


def check_class(target: int | None, classes: int) -> None:
    """Check that `target` is None or the number of one of the classes.

    Raises:
        ExplainError: It is not.
    """
    if target is not None and not (isinstance(target, int) and 0 <= target < classes):
        raise ExplainError(f"target={target!r} must be a class from 0 to {classes - 1}")


def _choose_pixels(
    predicted: Tensor, target: int | None, where: Tensor | tuple[int, int] | None
) -> tuple[Tensor, int]:
    """A mask of the pixels to count, from the predicted classes (H, W), and the class."""
    mask = torch.zeros_like(predicted, dtype=torch.bool)
    if isinstance(where, Tensor):
        mask[: where.shape[0], : where.shape[1]] = where.to(predicted.device) != 0
        if not mask.any():
            raise ExplainError("where must be a mask with pixels; all are False")
    elif where is not None:
        y, x = where
        if not (0 <= y < predicted.shape[0] and 0 <= x < predicted.shape[1]):
            raise ExplainError(f"where={where} must be a pixel (y, x) of the image")
        mask[y, x] = True
    if target is None:
        target = int((predicted[mask] if where is not None else predicted).flatten().mode().values)
    if where is None:
        mask = predicted == target
        if not mask.any():
            raise ExplainError(f"target={target} is predicted nowhere; give where, a mask or pixel")
    return mask, target


def find_maps(
    model: nn.Module, image: Tensor
) -> tuple[list[str], Callable[[Tensor], Tensor] | None]:
    """Names of the layers to weight, and a function from their outputs to maps (N, C, h, w).

    Raises:
        ExplainError: The network has none of our backbones.
    """
    backbone = find_backbone(model)
    names = {module: name for name, module in model.named_modules()}
    if isinstance(backbone, StagedBackbone):
        sides = [
            math.ceil(min(image.shape[-2:]) / info["reduction"]) for info in backbone.feature_info
        ]
        fine = [stage for stage, side in enumerate(sides) if side >= FEWEST_CELLS]
        stage: Any = backbone.stages[max(fine, default=0)]
        # VM-UNet calls the parts of a stage
        module = stage if stage in called_modules(model, image) else stage.blocks
        return [names[module]], _guess_maps(model, image)
    if isinstance(backbone, PlainBackbone):
        blocks: Any = backbone.blocks
        reads_prefix = model is backbone and backbone.global_pool == "token"
        if reads_prefix and len(blocks) == 1:
            return [names[backbone.pos_drop]], _guess_maps(model, image)
        block = blocks[-2 if reads_prefix else -1]
        # such a block is not called: the backbone adds the mixer's output itself
        module = block.mixer if backbone.shows_updates else block
        return [names[module]], _guess_maps(model, image)
    raise ExplainError(
        f"model={type(model).__name__} has none of our backbones; name layers whose "
        "outputs are maps (N, C, h, w)"
    )


def called_modules(model: nn.Module, image: Tensor) -> set[nn.Module]:
    """The modules that take part in a network's output as modules, whose hooks therefore run."""
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_hook(lambda module, _args, _output: called.add(module))
        for module in model.modules()
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _guess_maps(model: nn.Module, image: Tensor) -> Callable[[Tensor], Tensor] | None:
    """A function from outputs in the layout of a network's backbone to maps."""
    backbone = find_backbone(model)
    if isinstance(backbone, StagedBackbone):
        return None if backbone.is_nchw else _from_nhwc
    if not isinstance(backbone, PlainBackbone):
        return None
    grids = {scan.grid for scan in observe_scans(model, image)}

    def from_tokens(x: Tensor) -> Tensor:
        patches = x.shape[1] - backbone.num_prefix_tokens
        grid = next(grid for grid in grids if grid[0] * grid[1] == patches)
        kept = split_tokens(x, backbone.places(patches))[0]
        return kept.unflatten(1, grid).permute(0, 3, 1, 2)

    return from_tokens


def _from_nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Preserve gradients and `requires_grad`, which grad-cam modifies."""
    kept = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    for p, _, _ in kept:
        p.requires_grad_(False)
        p.grad = None
    try:
        yield
    finally:
        for p, requires_grad, grad in kept:
            p.requires_grad_(requires_grad)
            p.grad = grad
        for module, training in modes:
            cast(Any, module).training = training
