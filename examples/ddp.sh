#!/usr/bin/env bash
# One node, DDP.   NPROC=8 RUN=runs/sft examples/ddp.sh --config 3b/sft.yaml --init_from runs/pretrain/checkpoints/last.ckpt
set -euo pipefail
RUN=${RUN:?the folder of the run: processes started together must agree on it}
exec torchrun --standalone --nproc_per_node "${NPROC:-8}" -m bluelm_lightning.cli.fit \
  "$@" --trainer.strategy=ddp --trainer.devices="${NPROC:-8}" --run_dir "$RUN"
