#!/usr/bin/env bash
# One node, FSDP2.   NPROC=8 CONTEXT=1 RUN=runs/sft examples/fsdp2.sh --config 3b/sft.yaml
# CONTEXT processes share each row: a divisor of NPROC and of the decoder's key-value heads (3b: 8).
set -euo pipefail
RUN=${RUN:?the folder of the run: processes started together must agree on it}
exec torchrun --standalone --nproc_per_node "${NPROC:-8}" -m bluelm_lightning.cli.fit \
  "$@" --config fragments/sharded.yaml --trainer.devices="${NPROC:-8}" \
  --trainer.strategy.init_args.context_parallel="${CONTEXT:-1}" --run_dir "$RUN"
