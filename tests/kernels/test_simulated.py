"""The compiled Triton kernels, run instruction by instruction by the simulator of tools/.

This tests what the interpreter does not simulate: barriers, shuffles, layouts, tensor cores and
addresses.
"""

import os
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled in the interpreter", allow_module_level=True)

from ptx_simulator import Machine, MemoryAccessError, Program, simulated

from tests.kernels import conv_problems, mamba3_problems, problems, ssd_problems, state_problems
from vimamba_kernels import selective_scan, ssd
from vimamba_kernels.path_conv import causal_conv_along_paths
from vimamba_kernels.selective_scan import fused as scan_fused
from vimamba_kernels.ssd import fused as ssd_fused

# relative L2 of sums of up to 300 terms; measured up to 2e-7, 4e-4 and 4e-3
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
RAGGED = {"k": 2, "steps": 18, "length": 21, "zero_tokens": 1}


def assert_nothing_is_left_to_chance(report):
    """No finding but those known to be harmless.

    Lanes of a reduction in `ssd_gradients` store copies of one sum that differ in the last bit to
    one address; PTX does not define which one remains, but a GPU does.
    """
    left = {
        key: count
        for key, count in report.findings.items()
        if (key[0], key[1].kind) != ("ssd_gradients", "tie")
    }
    assert not left, str(report)
    assert report.kernels


def check_scan(target, size, dtype, monkeypatch, *, split=False, segments=1, long_tables=False):
    def plan(sizes, shape, programs, room):
        return scan_fused.Plan(*shape, split=split, segments=segments)

    monkeypatch.setattr(scan_fused, "choose_plan", plan)
    problem = problems.make_problem(**size, dtype=dtype)
    if long_tables:
        problem["paths"] = problem["paths"].long()
    grad = problems.output_gradient(problem)
    with simulated(target) as report:
        results = problems.computed(partial(selective_scan, backend="triton"), problem, grad)
    problems.assert_close(results, problems.expected(problem, grad), TOLERANCES[dtype])
    assert_nothing_is_left_to_chance(report)


def check_conv(target, size, dtype):
    problem = conv_problems.make_problem(**size, dtype=dtype)
    grad = conv_problems.output_gradient(problem)
    with simulated(target) as report:
        scan = partial(causal_conv_along_paths, backend="triton")
        results = conv_problems.with_gradients(scan, problem, grad)
    conv_problems.assert_close(results, conv_problems.expected(problem, grad), TOLERANCES[dtype])
    assert_nothing_is_left_to_chance(report)


def check_ssd(target, size, dtype, monkeypatch, *, segments=1, parts=1):
    monkeypatch.setattr(ssd_fused, "choose_segments", lambda *sizes: segments)
    monkeypatch.setattr(ssd_fused, "_choose_parts", lambda *sizes: parts)
    problem = ssd_problems.make_problem(**size, dtype=dtype)
    with simulated(target) as report:
        results = ssd_problems.with_gradients(lambda p: ssd(**p, backend="triton"), problem)
    references = ssd_problems.with_gradients(ssd_problems.scan_by_hand, problem)
    ssd_problems.assert_close(results, references, TOLERANCES[dtype])
    assert_nothing_is_left_to_chance(report)
    return report


def check_mamba3(target, size, dtype):
    problem = mamba3_problems.make_problem(**size, dtype=dtype)
    with simulated(target) as report:
        results = mamba3_problems.with_gradients(problem, backend="triton")
    expected = mamba3_problems.defined(problem)
    mamba3_problems.assert_close(results, expected, TOLERANCES[dtype])
    assert_nothing_is_left_to_chance(report)


SCANS = {
    "own_programs_one_state": ({"length": 24, "channels": 96, "n": 1, "k": 4}, {}),
    "atomic_sixteen_states_projected": (
        {"length": 20, "channels": 64, "n": 16, "rank": 24, "batch": 1},
        {"split": True},
    ),
    "ragged_projected": ({**RAGGED, "channels": 36, "n": 5, "rank": 7, "batch": 1}, {}),
    "ragged_atomic": ({**RAGGED, "channels": 36, "n": 5, "batch": 1}, {"split": True}),
    "segments": ({"length": 40, "channels": 33, "n": 3, "batch": 1}, {"segments": 2}),
    "segments_projected_wide_table": (
        {"length": 40, "channels": 64, "n": 2, "rank": 12, "batch": 1},
        {"segments": 2, "split": True, "long_tables": True},
    ),
    "groups": ({"length": 12, "channels": 64, "groups": 2, "n": 4, "u_per_path": True}, {}),
    "paths_per_sample_atomic": (
        {
            "paths_per_sample": True,
            "length": 9,
            "steps": 8,
            "zero_tokens": 1,
            "channels": 64,
            "n": 1,
        },
        {"split": True},
    ),
    "thirty_two_states": ({"length": 9, "channels": 64, "n": 32, "batch": 1}, {}),
    "without_all_that_is_optional": (
        {"length": 10, "channels": 32, "n": 2, "without": ("D", "z", "delta_bias", "paths")},
        {},
    ),
}
CONVS = {
    "whole_paths": {"length": 45, "channels": 96},
    "ragged": {"length": 41, "channels": 100, "taps": 5, "steps": 38, "zero_tokens": 3, "k": 3},
    "paths_per_sample": {"length": 41, "channels": 64, "steps": 38, "paths_per_sample": True},
}
SSDS = {
    "one_chunk": ({"length": 20, "heads": 4, "width": 16, "n": 24, "batch": 1}, {}),
    "many_states": ({"length": 70, "heads": 2, "width": 16, "n": 64, "groups": 1, "batch": 1}, {}),
    "segments_and_parts": (
        {"length": 150, "heads": 4, "width": 16, "n": 64, "groups": 1, "batch": 1},
        {"segments": 2, "parts": 2},
    ),
    "ragged": (
        {"length": 51, "heads": 6, "width": 20, "n": 24, "zero_tokens": 5, "steps": 45, "batch": 1},
        {},
    ),
    "paths_per_sample": (
        {"length": 33, "heads": 2, "width": 16, "n": 16, "groups": 1, "paths_per_sample": True},
        {},
    ),
    "wide_heads": ({"length": 40, "heads": 2, "width": 64, "n": 64, "groups": 1, "batch": 1}, {}),
    "most_states": ({"length": 40, "heads": 2, "width": 64, "n": 128, "groups": 1, "batch": 1}, {}),
}
MAMBA3S = {
    "ranks": {"length": 9, "ranks": 2, "zero_tokens": 1, "n": 16, "pairs": 8, "groups": 1},
    "ragged": {"length": 37, "steps": 35, "width": 20, "n": 23, "pairs": 5, "batch": 1},
}
ARCHITECTURES = ("sm_80", "sm_90")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize(
    ("target", "name", "dtype"),
    [
        ("sm_80", "ragged_projected", torch.float32),
        ("sm_90", "atomic_sixteen_states_projected", torch.bfloat16),
        ("sm_80", "segments_projected_wide_table", torch.float16),
        ("sm_90", "paths_per_sample_atomic", torch.float32),
    ],
)
def test_scan(target, name, dtype, monkeypatch):
    size, options = SCANS[name]
    check_scan(target, size, dtype, monkeypatch, **options)


def test_conv():
    check_conv("sm_90", CONVS["ragged"], torch.bfloat16)


@pytest.mark.parametrize(
    ("target", "name", "dtype", "product"),
    [
        ("sm_80", "ragged", torch.float32, "mma"),
        ("sm_90", "many_states", torch.bfloat16, "wgmma"),
    ],
)
def test_ssd(target, name, dtype, product, monkeypatch):
    size, options = SSDS[name]
    report = check_ssd(target, size, dtype, monkeypatch, **options)
    assert any(opcode.startswith(f"{product}.") for opcode in report.opcodes)


def test_mamba3():
    check_mamba3("sm_90", MAMBA3S["ranks"], torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("target", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MAMBA3S)
def test_every_mamba3(name, dtype, target):
    check_mamba3(target, MAMBA3S[name], dtype)


@pytest.mark.slow
@pytest.mark.parametrize("target", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SCANS)
def test_every_scan(name, dtype, target, monkeypatch):
    size, options = SCANS[name]
    check_scan(target, size, dtype, monkeypatch, **options)


@pytest.mark.slow
@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("target", ARCHITECTURES)
def test_every_scan_with_states(target, n, segments, monkeypatch):
    def plan(sizes, shape, programs, processors):
        return scan_fused.Plan(*shape, split=False, segments=segments)

    monkeypatch.setattr(scan_fused, "choose_plan", plan)
    size = {"length": 21, "steps": 19, "zero_tokens": 1, "channels": 40, "n": n, "rank": 7}
    problem = state_problems.with_state(batch=1, **size, dtype=torch.float32)
    with simulated(target) as report:
        results = state_problems.computed(problem, backend="triton")
    state_problems.assert_close(results, state_problems.expected(problem, True), 2e-6)
    assert_nothing_is_left_to_chance(report)


@pytest.mark.slow
@pytest.mark.parametrize("target", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONVS)
def test_every_conv(name, dtype, target):
    check_conv(target, CONVS[name], dtype)


@pytest.mark.slow
@pytest.mark.parametrize("target", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name, (size, _) in SSDS.items()
        for dtype in DTYPES
        if ssd_fused.obstacle(dtype, size["n"]) is None
    ],
    ids=str,
)
def test_every_ssd(name, dtype, target, monkeypatch):
    size, options = SSDS[name]
    check_ssd(target, size, dtype, monkeypatch, **options)


def test_missing_barriers_are_found():
    """Their results are correct anyway, because lanes advance in lockstep here."""

    def drop(kernel, ptx):
        return ptx.replace("bar.sync", "// bar.sync") if kernel == "scan_backward" else ptx

    problem = problems.make_problem(**SCANS["ragged_projected"][0], dtype=torch.float32)
    grad = problems.output_gradient(problem)
    with simulated("sm_80", change=drop) as report:
        results = problems.computed(partial(selective_scan, backend="triton"), problem, grad)
    problems.assert_close(results, problems.expected(problem, grad), TOLERANCES[torch.float32])
    found = {(kernel, finding.kind, finding.space) for kernel, finding, *_ in report.findings}
    assert found == {("scan_backward", "unordered", space) for space in ("global", "shared")}


# Handwritten kernels. Registers: %rd1 a tensor, %r1 the thread's number, %r2 four times that.
HEAD = """
.visible .entry kernel(
	.param .u64 kernel_param_0
)
.reqntid {threads}
{{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [kernel_param_0];
	mov.u32 	%r1, %tid.x;
	shl.b32 	%r2, %r1, 2;
	mul.wide.u32 	%rd2, %r1, 4;
	add.s64 	%rd3, %rd1, %rd2;
"""
TO_SHARED = "	st.shared.b32 	[%r2], %r1;\n"
# the neighbor's word; the last thread's neighbor is the first thread
FROM_NEIGHBOUR = """
	add.s32 	%r3, %r1, {step};
	rem.s32 	%r3, %r3, {threads};
	shl.b32 	%r3, %r3, 2;
	ld.shared.b32 	%r4, [%r3];
	st.global.b32 	[%rd3], %r4;
"""
BARRIER = "	bar.sync 	0;\n"


def execute(body, threads, words, programs=1, step=1):
    text = HEAD.format(threads=threads) + body.format(threads=threads, step=step) + "	ret;\n}\n"
    array = np.zeros(words, np.uint32)
    machine = Machine(Program(text), [array], programs, shared=4 * threads).run()
    return array, {(f.kind, f.space, f.scope) for f in machine.findings}


def test_half_of_a_number_is_taken_with_a_register_for_the_other():
    body = """
	.reg .b16 	%rs<2>;
	shl.b32 	%r3, %r1, 16;
	{{ .reg .b16 tmp; mov.b32 {{tmp, %rs1}}, %r3; }}
	cvt.u32.u16 	%r4, %rs1;
	st.global.b32 	[%rd3], %r4;
"""
    array, _ = execute(body, 32, 32)
    assert array.tolist() == list(range(32))


def test_a_barrier_orders_what_warps_share():
    array, findings = execute(TO_SHARED + BARRIER + FROM_NEIGHBOUR, 64, 64, step=32)
    assert array.tolist() == [(i + 32) % 64 for i in range(64)]
    assert findings == set()


def test_without_a_barrier_what_warps_share_is_unordered():
    _, findings = execute(TO_SHARED + FROM_NEIGHBOUR, 64, 64, step=32)
    assert findings == {("unordered", "shared", "program")}


def test_lanes_of_a_warp_are_not_in_step_by_themselves():
    _, findings = execute(TO_SHARED + FROM_NEIGHBOUR, 32, 32)
    assert findings == {("unordered", "shared", "warp")}
    _, findings = execute(TO_SHARED + "	bar.warp.sync 	-1;\n" + FROM_NEIGHBOUR, 32, 32)
    assert findings == set()


def test_a_write_after_a_read_wants_a_barrier():
    again = TO_SHARED + BARRIER + FROM_NEIGHBOUR + "{between}" + TO_SHARED
    _, findings = execute(again.replace("{between}", ""), 64, 64)
    assert ("unordered", "shared", "program") in findings
    _, findings = execute(again.replace("{between}", BARRIER), 64, 64)
    assert findings == set()


def test_what_nobody_wrote_is_not_read():
    _, findings = execute(FROM_NEIGHBOUR, 32, 32)
    assert findings == {("uninitialized", "shared", "program")}


def test_programs_do_not_wait_for_each_other():
    # both write the same words
    _, findings = execute("	st.global.b32 	[%rd3], %r1;\n" + BARRIER, 32, 32, programs=2)
    assert findings == set(), "one instruction, equal values"
    body = "	st.global.b32 	[%rd3], %r1;\n	ld.global.b32 	%r4, [%rd3];\n"
    _, findings = execute(body, 32, 32, programs=2)
    assert findings == {("unordered", "global", "launch")}


def test_atomic_additions_need_no_order_among_themselves():
    body = "	mov.b32 	%r4, 0f3F800000;\n	red.global.add.f32 	[%rd1], %r4;\n" * 2
    array, findings = execute(body, 32, 1, programs=3)
    assert array.view("float32")[0] == 2 * 32 * 3
    assert findings == set()
    _, findings = execute(body + "	ld.global.b32 	%r5, [%rd1];\n", 32, 1)
    assert findings == {("unordered", "global", "warp")}


def test_lanes_that_store_different_values_to_one_place_are_a_tie():
    _, findings = execute("	st.global.b32 	[%rd1], %r1;\n", 32, 1)
    assert findings == {("tie", "global", "program")}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("	st.global.b32 	[%rd3], %r1;\n", "writes outside of the tensors"),
        ("	ld.global.b32 	%r4, [%rd3+4096];\n", "leaves global memory"),
        ("	ld.global.b32 	%r4, [%rd1+2];\n", "not aligned"),
        ("	st.shared.b32 	[%r2+4], %r1;\n", "leaves shared memory"),
    ],
)
def test_wild_addresses_end_the_run(body, why):
    with pytest.raises(MemoryAccessError, match=why):
        execute(body, 32, 16)


def test_threads_part_and_meet_again():
    body = """
	setp.lt.s32 	%p1, %r1, 8;
	mov.b32 	%r4, 7;
	@%p1 bra 	$L_few;
	mov.b32 	%r4, 5;
$L_few:
	shfl.sync.bfly.b32 	%r5, %r4, 8, 31, -1;
	@!%p1 st.global.b32 	[%rd3], %r5;
"""
    array, findings = execute(body, 32, 32)
    assert array.tolist() == [0] * 8 + [7] * 8 + [5] * 16
    assert findings == set()


def test_threads_that_have_ended_are_not_waited_for():
    body = """
	setp.lt.s32 	%p1, %r1, 32;
	@%p1 bra 	$L_wait;
	ret;
$L_wait:
	bar.sync 	0;
	st.global.b32 	[%rd3], %r1;
"""
    array, _ = execute(body, 64, 64)
    assert array.tolist() == [*range(32), *[0] * 32]


def test_a_shuffle_wants_whole_warps():
    body = """
	setp.lt.s32 	%p1, %r1, 8;
	@%p1 shfl.sync.bfly.b32 	%r5, %r1, 8, 31, -1;
"""
    with pytest.raises(RuntimeError, match="a part of one"):
        execute(body, 32, 32)


def test_a_copy_arrives_when_it_is_waited_for():
    body = """
	cp.async.ca.shared.global 	[ %r2 + 0 ], [ %rd3 + 0 ], 0x4;
	cp.async.commit_group;
"""
    wait = "	cp.async.wait_group 	0;\n"
    read = "	ld.shared.b32 	%r4, [%r2];\n"
    assert execute(body + wait + read, 32, 32)[1] == set()
    assert execute(body + read, 32, 32)[1] == {("uninitialized", "shared", "program")}
