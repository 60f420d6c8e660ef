#!/usr/bin/env bash
# Any script of the repository on all GPUs of one machine:
#   bash container/launch.sh train.py --model-config MODEL.json --dataset-config DATASET.json
# and on several machines, started on each with the same words:
#   NODES=2 HEAD=node-1 RUN_ID=vae-7 bash container/launch.sh train.py --model-config MODEL.json ...
# GPUS: processes per machine (all GPUs). HEAD, PORT: where the machines meet. RUN_ID: a name that is new for each run.
set -euo pipefail
cd "$(dirname "$0")/.."

if (($# == 0)); then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
nodes=${NODES:-1} gpus=${GPUS:-gpu}
if ((nodes == 1)); then
  exec torchrun --standalone --nproc_per_node "$gpus" "$@"
fi
: "${HEAD:?the machine where the others meet}" "${RUN_ID:?a name for this run, the same on every machine}"
more=()
if [[ $1 == train.py ]]; then
  more=(--num-nodes "$nodes")
fi
exec torchrun --nnodes "$nodes" --nproc_per_node "$gpus" --rdzv_backend c10d --rdzv_endpoint "$HEAD:${PORT:-29500}" \
  --rdzv_id "$RUN_ID" "$@" "${more[@]}"
