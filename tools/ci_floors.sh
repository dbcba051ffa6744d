#!/usr/bin/env bash
# Tests the bounds of pyproject.toml: installs one combination of versions into a separate environment
# and runs the tests that depend on them.
#
#   tools/ci_floors.sh PYTHON TORCH TIMM      tools/ci_floors.sh python3.10 floor floor
#
# TORCH and TIMM are a version, "floor" (the lowest that pyproject.toml allows) or "newest". The lowest
# torch comes with the lowest numba.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1 torch=$2 timm=$3

floor() { # the bound of a package among the core's dependencies
  sed -n '/^dependencies/,/^]/s/^ *"'"$1"'>=\([0-9.]*\)".*/\1/p' pyproject.toml
}
pin() { # a requirement, as pip reads it
  case $2 in
    newest) echo "$1" ;;
    floor) echo "$1==$(floor "$1").*" ;;
    *) echo "$1==$2" ;;
  esac
}

numba=newest
[ "$torch" = floor ] && numba=floor
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$python" -m venv "$place"
"$place/bin/pip" install --quiet --disable-pip-version-check --upgrade pip
"$place/bin/pip" install --quiet --disable-pip-version-check . \
  "$(pin torch "$torch")" "$(pin timm "$timm")" "$(pin numba "$numba")" \
  hypothesis packaging pillow pytest pytest-timeout
"$place/bin/python" -c 'import numba, sys, timm, torch
print("Python", sys.version.split()[0], *(f"{m.__name__} {m.__version__}" for m in (torch, timm, numba)))'
# the tests import the checkout; everything else comes from the environment
OMP_NUM_THREADS=1 PYTHONPATH=.:kernels:tools "$place/bin/python" -m pytest -q -p no:cacheprovider \
  tests/models/test_contract.py tests/parity/test_parity.py tests/layers tests/heads \
  tests/networks/test_registry.py tests/networks/test_segmenter.py tests/networks/test_umamba.py \
  tests/scan_orders tests/kernels/test_selective_scan.py tests/kernels/test_ssd.py
