"""Sizes of images and volumes as people write them: 224, 96x160 or [96, 160].

Sides are in the order of an array's axes: (depth,) height, width, in pixels.
"""

import re
from collections.abc import Sequence

from vimamba.errors import VimambaError

# one side for all axes, the sides, or the sides as text
ImageSize = int | Sequence[int] | str

_AXES = {2: "HEIGHTxWIDTH", 3: "DEPTHxHEIGHTxWIDTH"}


def read_size(
    size: ImageSize, dims: int | None = 2, *, name: str = "img_size"
) -> int | tuple[int, ...]:
    """A size in canonical form: a whole number if all sides are equal, else the sides.

    Args:
        size: A number, sides, or text such as "96x160".
        dims: Number of axes; None for 2 or 3.
        name: Name of the argument in errors.

    Raises:
        VimambaError: It is not a size, or has another number of axes.
    """
    given = f"{name} {size}" if name.startswith("--") else f"{name}={size!r}"
    known = [dims] if dims else list(_AXES)
    wanted = f"a whole number or {' or '.join(_AXES[n] for n in known)}, such as 224 or " + (
        "96x160" if 2 in known else "32x96x160"
    )
    if isinstance(size, str):
        if not re.fullmatch(r"\d+(x\d+)*", size.strip()):
            raise VimambaError(f"{given} must be {wanted}")
        sides = [int(side) for side in size.split("x")]
    else:
        sides = list(size) if isinstance(size, Sequence) else [size]
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise VimambaError(f"{given} must be {wanted}")
    if min(sides, default=1) < 1:
        raise VimambaError(f"{given} must be at least 1")
    if len(sides) != 1 and len(sides) not in known:
        raise VimambaError(f"{given} has {len(sides)} sides; it must be {wanted}")
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


def sides_of(size: ImageSize, dims: int = 2) -> tuple[int, ...]:
    """All sides of a size.

    Raises:
        VimambaError: As in `read_size`.
    """
    found = read_size(size, dims)
    return (found,) * dims if isinstance(found, int) else found


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """The two sides of an image.

    Raises:
        VimambaError: As in `read_size`.
    """
    height, width = sides_of(size)
    return height, width


def by_sides(size: ImageSize) -> str:
    """A size as text: "224" or "96x160"."""
    found = read_size(size, None)
    return str(found) if isinstance(found, int) else "x".join(map(str, found))
