#!/bin/bash
# Trains a recipe on several machines without a scheduler. Run this on each of them:
#   HEAD=first.machine:29500 NODES=2 GPUS=8 bash configs/cluster/torchrun.sh RECIPE RUN [OPTION ...]
# The run's folder, the data and the code must lie where all machines see them.
set -euo pipefail

recipe=$1
run=$2
shift 2

torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "${JOB:-vimamba}" \
  -m vimamba fit -c "$recipe" --out "$run" --resume auto \
  --trainer.num_nodes "$NODES" --trainer.devices "$GPUS" --trainer.strategy ddp "$@"
