#!/bin/bash
# The first run on a GPU, in about ten minutes, from the root of the repository: versions, the smallest
# tests of each kernel, races, the rest of the GPU tests, then times compared with the predictions. It
# continues after failures. Results are written to docs/benchmarks/<date>_<GPU>/, to be committed.
#
#     bash tools/first_gpu_run.sh
set -u
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1
gpu=$(python -c "import torch; print(torch.cuda.get_device_name().replace(' ', '_'))") || exit
folder=docs/benchmarks/$(date +%F)_$gpu
mkdir -p "$folder"
exec > >(tee "$folder/log.txt") 2>&1

tests() {
    limit=$1
    shift
    timeout "$limit" python -m pytest -q -m gpu "$@" || echo "FAILED: $*"
}

echo "== versions"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
python -c "import torch, triton; print(torch.__version__, triton.__version__)"
git log -1 --format=%H

echo "== the smallest numbers of each kernel"
tests 150 tests/kernels/test_triton_gpu.py -x -k \
    "test_output_and_gradients and (vmamba_4 or ragged) and float32 and merged"
tests 150 tests/kernels/test_ssd_gpu.py -x -k \
    "test_outputs_and_gradients and (vmamba_4 or wide_heads) and bfloat16 and merged"
tests 60 tests/kernels/test_path_conv_gpu.py -x

echo "== races and wild accesses"
if command -v compute-sanitizer; then
    for tool in memcheck racecheck; do
        timeout 90 compute-sanitizer --tool $tool --kernel-regex kns=scan python -m pytest -q \
            -m gpu tests/kernels/test_triton_gpu.py -k \
            "test_output_and_gradients and projected_ragged and float32 and merged" | tail -5
    done
fi

echo "== every way to cut the work, reproducibility, CUDA graphs"
tests 240 tests/kernels/test_triton_gpu.py tests/test_compile.py
tests 120 tests/kernels/test_ssd_gpu.py

echo "== times, and what was predicted"
timeout 120 python tools/benchmark.py ops --backward --seconds 10 --csv "$folder/ops.csv"
timeout 120 python tools/benchmark.py models vmamba_tiny_s1l8 vim_small_patch16_224 \
    --sizes 224 --batch-size 64 --train --csv "$folder/models.csv"
timeout 120 python tools/compile_for_gpu.py --case vmamba_t_1_projected --case vim_s_projected \
    > "$folder/predicted.txt"
