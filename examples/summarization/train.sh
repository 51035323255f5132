#!/usr/bin/env bash
# Fine-tunes bart.large with a policy: fairseq's CNN/DM recipe with arch, task and criterion changed.
# Usage: train.sh DATA_BIN BART_CHECKPOINT SAVE_DIR
set -euo pipefail
data=$1 checkpoint=$2 save_dir=$3
updates=${UPDATES:-20000} update_freq=${UPDATE_FREQ:-4}
fairseq-train "$data" --user-dir sd_fairseq --restore-file "$checkpoint" --save-dir "$save_dir" \
  --task switchable_translation --source-lang source --target-lang target --truncate-source \
  --arch switchable_bart --criterion sd_policy_criterion --sd-tolerance 0.02 --sd-policy-lr 3e-4 \
  --sd-policy-warmup-updates 500 --sd-policy-freeze-update $((updates * 3 / 4)) \
  --layernorm-embedding --share-all-embeddings --share-decoder-input-output-embed \
  --reset-optimizer --reset-dataloader --reset-meters --required-batch-size-multiple 1 \
  --label-smoothing 0.1 --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 \
  --optimizer adam --adam-betas "(0.9, 0.999)" --adam-eps 1e-08 --clip-norm 0.1 \
  --lr-scheduler polynomial_decay --lr 3e-05 --total-num-update "$updates" --max-update "$updates" \
  --warmup-updates 500 --max-tokens 2048 --update-freq "$update_freq" --fp16 \
  --skip-invalid-size-inputs-valid-test --ddp-backend legacy_ddp
