"""Machine code of the Triton kernels for every GPU generation, compiled without a GPU.

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
import compile_for_gpu as tool

# the machine code depends on the compiler; measured with Triton 3.6 to 3.9
pytestmark = pytest.mark.xfail(
    outside("triton", "3.6", "3.9"), reason="another Triton than those measured", strict=False
)

CASES = tool.CASES | tool.PROJECTED | tool.VARIANTS
OTHERS = [target for target in tool.TARGETS if target != "sm_90"]
# many states and one, with and without a projection; the other sizes in the slow tests
ESSENTIAL = ["vim_s", "vmamba_t_2", "vmamba_t_1_projected"]
ELSEWHERE = [("vim_s", "gfx942"), ("vmamba_t_2", "sm_80")]
SPILLED_BY_A_PROJECTION = 32
# Instructions per lane for one step, state and channel on an H200, as printed by
# `python tools/compile_for_gpu.py` with Triton 3.9 (and 3.6 within 5 %), rounded up.
# 8 take as long as one exp2.
BUDGETS = {
    ("vim_s", "scan_forward"): 8.5,
    ("vim_s", "scan_backward"): 23,
    ("vmamba_t_1", "scan_forward"): 53,
    ("vmamba_t_1", "scan_backward"): 70,
    ("vmamba_t_2", "scan_forward"): 39,
    ("vmamba_t_2", "scan_backward"): 66,
    ("vmamba_t_3", "scan_forward"): 31,
    ("vmamba_t_3", "scan_backward"): 55,
    ("vmamba_t_4", "scan_forward"): 33,
    ("vmamba_t_4", "scan_backward"): 57,
    ("vim_s_1248", "scan_forward"): 10,
    ("vim_s_1248", "scan_backward"): 26,
    ("vim_s_projected", "scan_forward"): 9.5,
    ("vim_s_projected", "scan_backward"): 25,
    ("vmamba_t_1_projected", "scan_forward"): 65,
    ("vmamba_t_1_projected", "scan_backward"): 77,
    ("vmamba_t_2_projected", "scan_forward"): 46,
    ("vmamba_t_2_projected", "scan_backward"): 77,
    ("vmamba_t_3_projected", "scan_forward"): 35,
    ("vmamba_t_3_projected", "scan_backward"): 61,
    ("vmamba_t_4_projected", "scan_forward"): 40,
    ("vmamba_t_4_projected", "scan_backward"): 66,
}


def essential_first(values, name=lambda value: value):
    """Values to parametrize with; those of non-essential cases are slow."""
    slow = pytest.mark.slow
    return [v if name(v) in ESSENTIAL else pytest.param(v, marks=slow) for v in values]


@cache
def launches(name, cut=None, deterministic=False):
    """Every kernel that the launcher would call, without duplicates."""
    plan = cut and tool.fused.Plan(0, 0, *cut)
    both = tool.record(CASES[name], plan, deterministic=deterministic)
    return list({tool.specialize(launch): launch for part in both for launch in part}.values())


def compiled(launch, target="sm_90"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tool.compile_launch(launch, target)


def assert_nothing_spills(found, target):
    for launch in found:
        # With a projection, a few addresses may be spilled and reloaded once in several steps:
        # bytes, on AMD registers.
        allowed = SPILLED_BY_A_PROJECTION if launch.arguments.get("RANK") else 0
        assert compiled(launch, target).spilled <= allowed, (launch.name, launch.arguments)


@pytest.mark.parametrize("name", essential_first(CASES))
def test_nothing_spills_on_an_h200(name):
    assert_nothing_spills(launches(name), "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("cut", [(False, 1), (True, 1), (False, 2)])
def test_nothing_spills_however_the_work_is_cut(cut):
    for deterministic in (False, True):
        assert_nothing_spills(launches("vim_s", cut, deterministic), "sm_90")


@pytest.mark.parametrize(("name", "target"), ELSEWHERE)
def test_nothing_spills_on_other_generations(name, target):
    assert_nothing_spills(launches(name), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("name", CASES)
def test_nothing_spills_anywhere(name, target):
    assert_nothing_spills(launches(name), target)


@pytest.mark.parametrize("name", essential_first(tool.CASES))
def test_the_forward_loop_has_no_barrier_no_shuffle_and_no_shared_memory(name):
    for launch in launches(name):
        if launch.name in ("scan_forward", "scan_summary"):
            _, opcodes = tool.step_loop(compiled(launch), launch)
            kinds = {opcode.split(".")[0] for opcode in opcodes}
            assert not kinds & {"BAR", "SHFL", "WARPSYNC", "LDS", "STS", "LDL", "STL"}


@pytest.mark.parametrize("name", essential_first(tool.CASES))
def test_the_backward_loop_has_no_shared_memory(name):
    for launch in launches(name):
        if launch.name == "scan_backward":
            _, opcodes = tool.step_loop(compiled(launch), launch)
            kinds = {opcode.split(".")[0] for opcode in opcodes}
            assert not kinds & {"LDS", "STS", "LDL", "STL"}


# 96 and 192 are not multiples of 128, so a lane holds one or two channels
@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("vim_s", 128, 128),
        pytest.param("vmamba_t_3", 64, 128, marks=pytest.mark.slow),
        pytest.param("vmamba_t_4", 64, 128, marks=pytest.mark.slow),
    ],
)
def test_loads_are_wide(name, forward, backward):
    least = {"scan_forward": forward, "scan_backward": backward}
    for launch in launches(name):
        if launch.name in least:
            widest = tool.count(compiled(launch), launch).widest
            assert widest >= least[launch.name], launch.name


@pytest.mark.parametrize("key", essential_first(BUDGETS, lambda key: key[0]), ids="-".join)
def test_no_more_instructions_are_issued_than_budgeted(key):
    name, kernel = key
    counts = [tool.count(compiled(x), x) for x in launches(name) if x.name == kernel]
    assert counts
    assert max(c.issued for c in counts) <= BUDGETS[key]


def test_the_counts_are_what_a_hand_count_gives():
    code = """
        /*0000*/ MOV R1, c[0x0][0x28] ;
        /*0010*/ FADD R2, R2, R3 ;
        /*0020*/ @P0 MUFU.EX2 R4, R4 ;
        /*0030*/ LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0040*/ @!P1 BRA 0x20 ;
        /*0050*/ STG.E [R2.64], R8 ;
        /*0060*/ @P2 BRA 0x10 ;
        /*0070*/ EXIT ;
    """
    (outer,) = tool._find_loops(code)
    assert outer.opcodes == ["FADD", "STG.E", "BRA"]
    assert outer.rare == []
    (inner,) = outer.inner
    assert inner.opcodes == ["MUFU.EX2", "LDG.E.128", "BRA"]
    arguments = {"N": 4, "UNROLL": 2, "BLOCK": 64}
    launch = tool.Launch("fused_backward.scan_backward", 1, 1, arguments)
    found = tool.count(tool.Compiled(1, 0, 0, [outer], code), launch)
    # 3 outside and 3 in each of 4 iterations, for 2 steps, 4 states and 2 channels per lane
    assert found == tool.Count((3 + 12) / 16, 4 / 16, 0, 0, 128)


def test_a_matrix_product_is_counted_once_for_the_steps_that_it_serves():
    code = """
        /*0000*/ FADD R2, R2, R3 ;
        /*0010*/ @P0 BRA 0x70 ;
        /*0020*/ LDG.E R8, desc[UR4][R2.64] ;
        /*0030*/ HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0040*/ IADD3 R1, R1, 0x1, RZ ;
        /*0050*/ @!P1 BRA 0x30 ;
        /*0060*/ STG.E [R2.64], R4 ;
        /*0070*/ MUFU.EX2 R4, R4 ;
        /*0080*/ @P2 BRA 0x0 ;
        /*0090*/ EXIT ;
    """
    (outer,) = tool._find_loops(code)
    assert outer.opcodes == ["FADD", "BRA", "MUFU.EX2", "BRA"]
    assert outer.rare == ["LDG.E", "STG.E"]
    arguments = {"N": 1, "UNROLL": 8, "BLOCK": 64, "RANK": 6}
    launch = tool.Launch("fused_forward.scan_forward", 1, 1, arguments)
    found = tool.count(tool.Compiled(1, 0, 0, [outer], code), launch)
    # 4 outside; every second time 2 more, and 3 in each of two iterations; for 8 steps, 2 channels
    assert found.issued == (4 + (2 + 2 * 3) / 2) / 16


def test_a_warp_waits_for_its_loads():
    """A token, from the cache, then its row, from memory; a second row is loaded meanwhile."""
    turn = [
        tool.parse(text)
        for text in (
            "LDG.E R2, desc[UR4][R8.64]",
            "IMAD.WIDE R4, R2, 0x4, R10",
            "LDG.E.64 R6, desc[UR4][R4.64]",
            "LDG.E R12, desc[UR4][R4.64+0x80]",
            "FADD R7, R7, R12",
            "@P0 BRA 0x10",
        )
    ]
    # 500 for the token, 4 for its address, a clock until the second row is requested, 1200, and
    # three instructions issued
    assert tool.clocks([turn] * 3) == 500 + 4 + 1 + 1200 + 3 - 1


def test_copies_are_waited_for_as_far_as_asked():
    copy = ["LDGSTS.E [R5], desc[UR4][R2.64]", "LDGDEPBAR"]
    waits = [[tool.parse(text) for text in (*copy, f"DEPBAR.LE SB0, {n}")] for n in ("0x0", "0x1")]
    assert tool.clocks([waits[0]] * 3) == 1200 + 1
    # of two iterations, the copy of the earlier one has completed
    assert tool.clocks([waits[1]] * 9) < 1200
