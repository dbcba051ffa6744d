"""Numbers as PTX stores them, and its arithmetic on them, in NumPy.

A register is an array of unsigned integers, one per thread; a type determines their meaning.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SMALLEST_NORMAL = np.float32(np.finfo(np.float32).tiny)
_KINDS = {"b": np.uint8, "u": np.uint8, "s": np.int8, "f": np.float16}


def width(kind: str) -> int:
    """Bytes of a type, such as 4 for "f32"; "bf16x2" is two 2-byte halves."""
    if kind.endswith("x2"):
        return 4
    return int("".join(filter(str.isdigit, kind))) // 8


def dtype(kind: str) -> Any:
    """NumPy's type for a PTX type; unsigned integers for types that NumPy does not have."""
    if kind == "pred":
        return np.bool_
    if kind in ("bf16", "bf16x2", "f16x2", "tf32"):
        return UNSIGNED[width(kind)]
    return np.dtype(f"{np.dtype(_KINDS[kind[0]]).kind}{width(kind)}").type


def widen_bfloat16(bits: Array) -> Array:
    """Bits of bfloat16 to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_bfloat16(values: Array) -> Array:
    """float32 to the bits of bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = ((bits + half) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def widen_half(kind: str) -> Callable[[Array], Array]:
    """From the 16 bits of "f16" or "bf16" to float32."""
    if kind == "bf16":
        return widen_bfloat16
    return lambda bits: bits.astype(np.uint16).view(np.float16).astype(np.float32)


def round_half(kind: str) -> Callable[[Array], Array]:
    """From float32 to the 16 bits of "f16" or "bf16"."""
    if kind == "bf16":
        return round_bfloat16
    return lambda values: values.astype(np.float16).view(np.uint16)


def round_tf32(bits: Array) -> Array:
    """Bits of float32, rounded to the ten mantissa bits that tensor cores use."""
    return (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def low_half(bits: Array) -> Array:
    """The lower 16 of 32 bits."""
    return (bits & np.uint32(0xFFFF)).astype(np.uint16)


def high_half(bits: Array) -> Array:
    """The upper 16 of 32 bits."""
    return (bits >> np.uint32(16)).astype(np.uint16)


def pack(low: Array, high: Array) -> Array:
    """Two 16-bit values to 32 bits."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def _fused(x: Array, y: Array, z: Array) -> Array:
    return (x.astype(np.float64) * y + z).astype(x.dtype)


def _exp2(x: Array) -> Array:
    power = np.exp2(x)
    return np.where(np.abs(power) < SMALLEST_NORMAL, np.float32(0), power)


FLOATING: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "fma": _fused,
    "max": np.fmax,
    "min": np.fmin,
    "abs": np.abs,
    "neg": np.negative,
    "ex2": _exp2,
    "lg2": np.log2,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
}


def _divide(x: Array, y: Array) -> Array:
    """Quotient rounded toward zero, as in C; NumPy rounds down."""
    quotient = np.abs(x) // np.abs(y)
    return np.where((x < 0) != (y < 0), -quotient, quotient).astype(x.dtype)


WHOLE: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "max": np.maximum,
    "min": np.minimum,
    "abs": np.abs,
    "neg": np.negative,
    "div": _divide,
    "rem": lambda x, y: x - _divide(x, y) * y,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}

_COMPARISONS: dict[str, Callable[..., Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def compare(name: str, x: Array, y: Array, *, floating: bool) -> Array:
    """A comparison of `setp`; those that end in "u" are also true for NaN."""
    if not floating:  # "lo", "ls", "hi" and "hs" are the unsigned ones
        name = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(name, name)
        return _COMPARISONS[name](x, y)
    unordered = np.isnan(x) | np.isnan(y)
    if name in ("num", "nan"):
        return unordered if name == "nan" else ~unordered
    if name in _COMPARISONS:
        return _COMPARISONS[name](x, y) & ~unordered
    return _COMPARISONS[name.removesuffix("u")](x, y) | unordered


def multiply(part: str, x: Array, y: Array) -> Array:
    """The lower half ("lo"), the upper half ("hi") or all bits ("wide") of a product."""
    if part == "lo":
        return x * y
    size, kind = x.dtype.itemsize, x.dtype.kind
    if size > 4:
        raise NotImplementedError(f"mul.{part} of {8 * size} bits")
    product = x.astype(f"{kind}{2 * size}") * y.astype(f"{kind}{2 * size}")
    return product if part == "wide" else (product >> (8 * size)).astype(x.dtype)


def shift(direction: str, x: Array, count: Array) -> Array:
    """`shl` or `shr` by at most all bits."""
    bits = 8 * x.dtype.itemsize
    inside = np.minimum(count, bits - 1).astype(x.dtype)
    shifted = x << inside if direction == "shl" else x >> inside
    if direction == "shr" and x.dtype.kind == "i":
        return shifted
    return np.where(count >= bits, x.dtype.type(0), shifted)


def extract_bits(x: Array, start: Array, length: Array) -> Array:
    """`bfe`: a number of bits from a position, sign-extended for a signed type."""
    bits = 8 * x.dtype.itemsize
    wide = x.astype(np.uint64) & np.uint64(2**bits - 1)
    mask = (np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)
    found = (wide >> start.astype(np.uint64)) & mask
    if x.dtype.kind == "i":
        sign = (found >> (length.astype(np.uint64) - np.uint64(1))) & np.uint64(1)
        found = np.where(sign.astype(bool), found | ~mask, found)
    return found.astype(x.dtype)


def permute_bytes(x: Array, y: Array, selector: Array) -> Array:
    """`prmt`: select four of eight bytes, or their signs."""
    source = x.astype(np.uint64) | (y.astype(np.uint64) << np.uint64(32))
    result = np.zeros(1, np.uint32)
    for place in range(4):
        choice = (selector >> np.uint32(4 * place)) & np.uint32(15)
        start = (choice & np.uint32(7)).astype(np.uint64) * np.uint64(8)
        byte = ((source >> start) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        byte = np.where(choice & np.uint32(8), sign, byte)
        result = result | (byte << np.uint32(8 * place))
    return result


def convert(target: str, modes: tuple[str, ...], source: str, x: Array) -> Array:
    """`cvt` of one value; `x` has the NumPy type of `source`."""
    if source == "bf16":
        x = widen_bfloat16(x)
    if target == "tf32":
        return round_tf32(x.view(np.uint32))
    if target == "bf16":
        return round_bfloat16(x)
    if "rmi" in modes or "rni" in modes or "rzi" in modes or "rpi" in modes:
        rounding = {"rmi": np.floor, "rni": np.rint, "rzi": np.trunc, "rpi": np.ceil}
        x = next(rounding[mode] for mode in modes if mode in rounding)(x)
    return x.astype(dtype(target))
