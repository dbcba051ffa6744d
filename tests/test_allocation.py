"""New tensors do not depend on torch's defaults, which other code may set: dtype and device."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for name in ("vimamba", "kernels") for path in (ROOT / name).rglob("*.py"))
FACTORIES = {
    "empty",
    "zeros",
    "ones",
    "full",
    "arange",
    "range",
    "linspace",
    "logspace",
    "eye",
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "tensor",
    "as_tensor",
    "asarray",
    "scalar_tensor",
    "empty_strided",
    "tril_indices",
    "triu_indices",
    "hann_window",
    "hamming_window",
    "bartlett_window",
    "blackman_window",
    "kaiser_window",
}
# these use the dtype and device of the tensor on which they are called
METHODS = {"new_empty", "new_zeros", "new_ones", "new_full"}
LEGACY = {"Tensor", "FloatTensor", "DoubleTensor", "HalfTensor", "LongTensor", "IntTensor"}


def find_violations(source: str) -> Iterator[str]:
    """Calls that leave dtype or device to torch.

    A `torch` factory must get both by name, or a mapping as in `**dd`, which a constructor
    takes for its parameters, like torch's own layers. Pass None to use torch's default.
    `..._like` and `from_numpy` take both from their argument.

    Methods of a tensor take both from it, too, but must get their shape as one tuple, because a
    tensor subclass may not support another form (MONAI's MetaTensor).
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = node.func.value, node.func.attr
        named = {keyword.arg for keyword in node.keywords}
        if isinstance(owner, ast.Name) and owner.id == "torch":
            whole = None in named or {"dtype", "device"} <= named
            if name in LEGACY or (name in FACTORIES and not whole):
                yield f"line {node.lineno}: torch.{name} without dtype and device"
        elif name in METHODS:
            first = node.args[0] if node.args else None
            listed = len(node.args) > 1 + (name == "new_full")
            if listed or isinstance(first, ast.Constant | ast.Starred):
                yield f"line {node.lineno}: {name} of several numbers in place of a tuple"
        elif name == "new_tensor":
            yield f"line {node.lineno}: new_tensor"


def test_new_tensors_have_a_dtype_and_a_device():
    found = {
        str(path.relative_to(ROOT)): list(find_violations(path.read_text())) for path in SOURCES
    }
    assert len(found) > 100
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.empty(3)",
        "torch.zeros(3, dtype=torch.float32)",
        "torch.arange(3, device=x.device)",
        "torch.tensor([0.5])",
        "torch.Tensor(3)",
        "x.new_empty(0)",
        "x.new_zeros(*sizes)",
        "x.new_empty(batch, length, dtype=torch.float32)",
        "x.new_full((2,), 1.0, 2)",
    ],
)
def test_the_rule_finds_what_it_forbids(source):
    assert len(list(find_violations(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.empty(3, dtype=torch.float32, device=x.device)",
        "torch.zeros(3, dtype=None, device=None)",
        "nn.Parameter(torch.empty(3, **dd))",
        "torch.zeros_like(x)",
        "torch.from_numpy(x)",
        "x.new_empty((0,))",
        "x.new_full((2,), 1.0)",
        "numpy.zeros(3)",
    ],
)
def test_the_rule_lets_through_what_it_allows(source):
    assert list(find_violations(source)) == []
