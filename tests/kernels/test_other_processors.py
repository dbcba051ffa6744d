"""The CPU kernels on other processors than the tests': without AVX-512, and on Arm."""

import os
import platform
import subprocess
import sys

import pytest

SCAN = """
import torch
from vimamba_kernels import selective_scan
torch.manual_seed(0)
B, K, L, D, N = 1, 2, 40, 48, {states}
leaves = [torch.randn(B, L, D), torch.randn(B, K, L, D), -torch.rand(K, D, N),
          torch.randn(B, K, L, N), torch.randn(B, K, L, N)]
leaves = [t.requires_grad_() for t in leaves]
paths = torch.stack([torch.arange(L), torch.arange(L).flip(0)])
results = []
for backend in ("cpu", "reference"):
    y = selective_scan(*leaves, delta_softplus=True, paths=paths, backend=backend)
    results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
for ours, expected in zip(*results, strict=True):
    # float32 on both sides
    assert (ours - expected).norm() <= 1e-5 * expected.norm()
"""
# optimized code of a kernel, without its target triple, compiled for another processor
CROSS = """
import re
import llvmlite.binding as llvm
from vimamba_kernels.selective_scan import cpu_forward
kernel = cpu_forward.forward
kernel.compile()
code = kernel._library.get_llvm_str()
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
triple = "aarch64-unknown-linux-gnu"
machine = llvm.Target.from_triple(triple).create_target_machine(cpu="neoverse-n1", opt=3)
code = re.sub(r'target triple = ".*"', f'target triple = "{triple}"', code)
code = re.sub(r'target datalayout = ".*"', f'target datalayout = "{machine.target_data}"', code)
# numba's reference counting, which kernels have no use for, is optimized for x86
code = re.sub(r"^define [^\\n]*@NRT_.*?^}$", "", code, flags=re.DOTALL | re.MULTILINE)
# an x86's control word, which is changed on an x86 only
code = re.sub(r"^.*call .*@llvm\\.x86\\.sse\\..*$", "", code, flags=re.MULTILINE)
module = llvm.parse_assembly(code)
module.verify()
text = machine.emit_assembly(module)
assert re.search(r"fmla\\s+v", text), "no vector arithmetic"
assert "prfm" in text, "no prefetching"
"""


def run(code: str, cache: object, **environment: str) -> None:
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="for x86-64 only")
@pytest.mark.parametrize("states", [1, 4])
def test_kernels_without_avx512_agree_with_the_definition(tmp_path, states):
    haswell = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi,+bmi2"}
    run(SCAN.format(states=states), tmp_path, **haswell)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="for x86-64 only")
def test_a_kernel_compiles_for_arm_to_vector_code(tmp_path):
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    run(CROSS, tmp_path, **plain)
