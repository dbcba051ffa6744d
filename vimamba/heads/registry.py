"""Names of the heads."""

from typing import Any

from torch import nn

from vimamba.names import check_free, expect_maker, unknown_name

_HEADS: dict[str, type[Any]] = {}


def register_head(
    head: type[nn.Module] | None = None, *, name: str | None = None, replace: bool = False
) -> Any:
    """Make a head available by name; a decorator, bare or with options, or a plain call.

    Args:
        head: A class constructed with channels and strides of a pyramid, fine to coarse, and the
            number of classes, that maps features [(N, C_i, H_i, W_i), ...] to logits (N,
            num_classes, h, w). Its attribute `finest_stride` is the stride of the finest level that
            it uses; finer ones are left out.
        name: The class's own name by default.
        replace: Overwrite a head of the same name. One that comes with vimamba is always replaced,
            with a warning.

    Raises:
        TypeError: `head` is not a class.
        ValueError: The name is taken, or `finest_stride` is not a stride.
    """
    if head is None:
        return lambda head: register_head(head, name=name, replace=replace)
    expect_maker(head, "head")
    name = name or head.__name__
    stride = getattr(head, "finest_stride", None)
    if not isinstance(stride, int) or stride < 1:
        raise ValueError(f"finest_stride={stride!r} of head {name!r} must be a stride, such as 4")
    check_free(name, _HEADS.get(name), kind="head", home="vimamba.heads", replace=replace)
    _HEADS[name] = head
    return head


def list_heads() -> list[str]:
    """Names of the heads for `vimamba.create_segmenter`."""
    return sorted(_HEADS)


def find_head(name: str) -> type[Any]:
    """The class of a head.

    Raises:
        ValueError: No head has this name.
    """
    if name not in _HEADS:
        raise ValueError(unknown_name("head", name, _HEADS))
    return _HEADS[name]
