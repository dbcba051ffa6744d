"""Machine code of the Triton kernels that work on tiles, for every GPU generation.

Triton caches what it compiles, so only the first run takes minutes.
"""

import os
import warnings
from functools import cache

import pytest

from tests.versions import outside

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled in the interpreter", allow_module_level=True)
import compile_for_gpu as machine
import compile_tiles_for_gpu as tool

# the machine code depends on the compiler; measured with Triton 3.6 to 3.9
pytestmark = pytest.mark.xfail(
    outside("triton", "3.6", "3.9"), reason="another Triton than those measured", strict=False
)

CASES = tool.CASES | tool.VARIANTS
# every kernel, and the sizes of the models; the others in the slow tests
ESSENTIAL = ["vim_s_conv", "vmamba_t_m2_2"]
ELSEWHERE = [("vim_s_conv", "gfx942")]
# Bytes that ptxas may spill around the loops, as it does for single numbers so that one more
# program fits in a multiprocessor.
AROUND_LOOPS = 64
# Instructions of a warp in the loops of an H200's kernel, one iteration each, as printed by
# `python tools/compile_tiles_for_gpu.py` with Triton 3.9, rounded up. Tiles are 32 by 64 in
# the convolution (16 by 64 in conv_slopes), and a chunk of 64 steps and two heads of 16 channels
# (one in ssd_gradients) for Mamba-2.
BUDGETS = {
    ("vim_s_conv", "conv_forward"): 500,
    ("vim_s_conv", "conv_slopes"): 370,
    ("vim_s_conv", "conv_inputs"): 340,
    ("vmamba_t_m2_2", "ssd_outputs"): 980,
    ("vmamba_t_m2_2", "walk_states"): 290,
    ("vmamba_t_m2_2", "ssd_gradients"): 1600,
    ("vmamba_t_m2_2", "gather_rows"): 115,
}


@cache
def launches(name):
    """Every kernel that the launcher would call, without duplicates."""
    both = CASES[name].passes()
    return list({machine.specialize(launch): launch for part in both for launch in part}.values())


def compiled(launch, target="sm_90"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return machine.compile_launch(launch, target)


def opcodes(loops):
    return [o for loop in loops for o in (*loop.opcodes, *loop.rare, *opcodes(loop.inner))]


def assert_nothing_spills(name, target):
    for launch in launches(name):
        found = compiled(launch, target)
        spilled = [o for o in opcodes(found.loops) if o.startswith(("LDL", "STL"))]
        assert not spilled, (launch.name, launch.arguments)
        limit = AROUND_LOOPS if target.startswith("sm") else 0
        assert found.spilled <= limit, (launch.name, launch.arguments)


@pytest.mark.parametrize("name", ESSENTIAL)
def test_no_loop_spills_on_an_h200(name):
    assert_nothing_spills(name, "sm_90")


@pytest.mark.parametrize(("name", "target"), ELSEWHERE)
def test_no_loop_spills_on_other_generations(name, target):
    assert_nothing_spills(name, target)


# a few bytes in a loop, for 16 of the 64 channels of a head
SPILLING = {("ssd_float32_wide", "sm_120"), ("ssd_wide", "sm_100")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target"),
    [
        (name, target)
        for name in CASES
        for target in machine.TARGETS
        if (name, target) not in SPILLING
    ],
)
def test_no_loop_spills_anywhere(name, target):
    assert_nothing_spills(name, target)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), sorted(SPILLING))
def test_what_spills_in_a_loop_is_next_to_nothing(name, target):
    for launch in launches(name):
        found = compiled(launch, target)
        kinds = [o for o in opcodes(found.loops) if o.startswith(("LDL", "STL"))]
        assert len(kinds) <= 10
        assert found.spilled <= 16


@pytest.mark.parametrize("key", BUDGETS, ids="-".join)
def test_no_more_instructions_are_issued_than_budgeted(key):
    name, kernel = key
    counts = [len(opcodes(compiled(x).loops)) for x in launches(name) if x.name == kernel]
    assert counts
    assert max(counts) <= BUDGETS[key]


@pytest.mark.parametrize("kernel", ["conv_forward", "conv_slopes", "conv_inputs", "gather_rows"])
def test_rows_are_loaded_in_the_widest_pieces(kernel):
    found = [x for name in ESSENTIAL for x in launches(name) if x.name == kernel]
    assert found
    for launch in found:
        assert any(o.startswith("LDG.E.128") for o in opcodes(compiled(launch).loops))


@pytest.mark.parametrize(
    ("kernel", "shape"), [("ssd_outputs", "64x16"), ("ssd_gradients", "64x64")]
)
def test_products_use_the_tensor_cores(kernel, shape):
    (launch,) = [x for x in launches("vmamba_t_m2_2") if x.name == kernel]
    assert any(o.startswith(f"HGMMA.{shape}") for o in opcodes(compiled(launch).loops))
