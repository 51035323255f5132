#!/usr/bin/env bash
# Fine-tunes bart.large with a policy: fairseq's CNN/DM recipe with arch, task and criterion changed.
# Usage: train.sh DATA_BIN BART_CHECKPOINT SAVE_DIR [more options of fairseq-train]
#   alone            one process per GPU of this machine
#   under torchrun   the process of one rank           (README.md has both commands)
#   under srun       one task a node, with PORT set
# Environment: UPDATES, TOKENS (of one update, all GPUs together), MAX_TOKENS (of one GPU at a time), PRECISION, PORT
set -euo pipefail
data=$1 checkpoint=$2 save_dir=$3
shift 3
updates=${UPDATES:-20000} tokens=${TOKENS:-65536} max_tokens=${MAX_TOKENS:-2048}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}                # of this node
workers=${WORLD_SIZE:-$((gpus * ${SLURM_JOB_NUM_NODES:-1}))} # torchrun tells the number itself
update_freq=$((tokens / (max_tokens * workers)))
if ((update_freq * max_tokens * workers != tokens)); then
  echo "train.sh: $workers GPUs of MAX_TOKENS=$max_tokens do not divide TOKENS=$tokens" >&2
  exit 1
fi
address=()
[[ -z ${PORT:-} ]] || address=(--distributed-port "$PORT")
read -ra precision <<<"${PRECISION---fp16}"

# --finetune-from-model starts from the checkpoint once; the same command, started again, goes on from SAVE_DIR.
fairseq-train "$data" --user-dir sd_fairseq --finetune-from-model "$checkpoint" --save-dir "$save_dir" \
  --task switchable_translation --source-lang source --target-lang target --truncate-source \
  --arch switchable_bart --criterion sd_policy_criterion \
  --required-batch-size-multiple 1 --save-interval-updates 1000 --keep-interval-updates 2 \
  --label-smoothing 0.1 --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 \
  --optimizer adam --adam-betas "(0.9, 0.999)" --adam-eps 1e-08 --clip-norm 0.1 \
  --lr-scheduler polynomial_decay --lr 3e-05 --total-num-update "$updates" --max-update "$updates" \
  --warmup-updates 500 --max-tokens "$max_tokens" --update-freq "$update_freq" \
  --skip-invalid-size-inputs-valid-test --ddp-backend legacy_ddp \
  ${precision[@]+"${precision[@]}"} ${address[@]+"${address[@]}"} "$@"
