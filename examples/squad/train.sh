#!/usr/bin/env bash
# Fine-tunes bart.large with a policy on SQuAD 1.1 or 2.0 with the paper's settings (section 4.4).
# Usage: train.sh DATA BART_CHECKPOINT SAVE_DIR [more options of fairseq-train]
# Environment: GPUS (default: all of this machine), MAX_SENTENCES (of one GPU at a time), PRECISION
set -euo pipefail
data=$1 checkpoint=$2 save_dir=$3
shift 3
windows=48 updates=5430 warmup=326 # of one update: 8 GPUs x 3 x --update-freq 2; 5,430 are three epochs of SQuAD 1.1
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
at_once=${MAX_SENTENCES:-3}
if ((gpus * at_once == 0 || windows % (at_once * gpus) != 0)); then
  echo "train.sh: $gpus GPUs of MAX_SENTENCES=$at_once do not divide an update of $windows windows" >&2
  exit 1
fi
read -ra precision <<<"${PRECISION---fp16 --fp16-init-scale 4 --threshold-loss-scale 1 --fp16-scale-window 128}"

# --finetune-from-model starts from the checkpoint once; the same command, started again, goes on from SAVE_DIR.
fairseq-train "$data" --user-dir sd_fairseq --finetune-from-model "$checkpoint" --save-dir "$save_dir" \
  --task switchable_squad --max-positions 512 --sd-stride 128 --sd-question-tokens 64 \
  --arch switchable_bart --criterion sd_policy_criterion \
  --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 \
  --optimizer adam --adam-betas "(0.9, 0.98)" --adam-eps 1e-08 --clip-norm 0.0 \
  --lr-scheduler polynomial_decay --lr 1.5e-05 --total-num-update "$updates" --max-update "$updates" \
  --warmup-updates "$warmup" --batch-size "$at_once" --update-freq $((windows / (at_once * gpus))) \
  --required-batch-size-multiple 1 --ddp-backend legacy_ddp --no-epoch-checkpoints \
  --best-checkpoint-metric span_both_ends --maximize-best-checkpoint-metric \
  ${precision[@]+"${precision[@]}"} "$@"
