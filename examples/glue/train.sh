#!/usr/bin/env bash
# Fine-tunes bart.large with a policy on MNLI, RTE or SST-2 with the paper's Table 15 (fairseq's own GLUE settings).
# Usage: train.sh MNLI|RTE|SST-2 DATA_BIN BART_CHECKPOINT SAVE_DIR [more options of fairseq-train]
# Environment: GPUS (default: all of this machine), MAX_SENTENCES (of one GPU at a time), PRECISION
set -euo pipefail
task=$1 data=$2 checkpoint=$3 save_dir=$4
shift 4
case $task in # Table 15: NC, LR, BSZ, TS, WS
  MNLI) classes=3 lr=5e-6 sentences=128 updates=30968 warmup=1858 ;;
  RTE) classes=2 lr=1e-5 sentences=32 updates=1018 warmup=61 ;;
  SST-2) classes=2 lr=5e-6 sentences=128 updates=5233 warmup=314 ;;
  *) echo "train.sh: no settings for $task" >&2 && exit 1 ;;
esac
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
at_once=${MAX_SENTENCES:-16}
((at_once * gpus <= sentences)) || at_once=$((sentences / gpus))
if ((at_once == 0 || sentences % (at_once * gpus) != 0)); then
  echo "train.sh: $gpus GPUs of MAX_SENTENCES=${MAX_SENTENCES:-16} do not divide a batch of $sentences" >&2
  exit 1
fi
read -ra precision <<<"${PRECISION---fp16 --fp16-init-scale 4 --threshold-loss-scale 1 --fp16-scale-window 128}"

# --finetune-from-model starts from the checkpoint once; the same command, started again, goes on from SAVE_DIR.
fairseq-train "$data" --user-dir sd_fairseq --finetune-from-model "$checkpoint" --save-dir "$save_dir" \
  --task switchable_sentence_prediction --num-classes "$classes" --init-token 0 --max-positions 512 \
  --arch switchable_bart --criterion sd_policy_criterion \
  --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 \
  --optimizer adam --adam-betas "(0.9, 0.98)" --adam-eps 1e-08 --clip-norm 0.0 \
  --lr-scheduler polynomial_decay --lr "$lr" --total-num-update "$updates" --max-update "$updates" \
  --warmup-updates "$warmup" --batch-size "$at_once" --update-freq $((sentences / (at_once * gpus))) \
  --required-batch-size-multiple 1 --skip-invalid-size-inputs-valid-test --ddp-backend legacy_ddp \
  --no-epoch-checkpoints --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric \
  ${precision[@]+"${precision[@]}"} "$@"
