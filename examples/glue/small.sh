#!/usr/bin/env bash
# A small model on one CPU core, from prepared data to two results: dense and switchable, trained from one dense start
# for as many updates each.
# Usage: small.sh SST-2|RTE|MNLI DATA OUT RAW_DEV [SEED]
#   DATA     made by prepare.py     RAW_DEV  the file that is scored, as raw as it came
#   OUT      folder for checkpoints, logs and results/*.json
# Environment: BASE (the dense start, instead of training one), START (what the dense start itself is trained from, such
#   as MNLI's for RTE), BASE_UPDATES, UPDATES, PYTHON,
#   COLUMNS_OF and LABEL_OF (columns of RAW_DEV, blank-separated, and of its label, where they are not the data's)
set -euo pipefail
task=$1 data=$2 out=$3 raw=$4 seed=${5:-1}
case $task in
  SST-2) classes=2 tokens=1024 base_updates=1700 updates=600 lr=1e-4 ;;
  MNLI) classes=3 tokens=1536 base_updates=1000 updates=600 lr=1e-4 ;;
  RTE) classes=2 tokens=1536 base_updates=300 updates=600 lr=1e-4 ;;
  *) echo "small.sh: no recipe for $task" >&2 && exit 1 ;;
esac
base_updates=${BASE_UPDATES:-$base_updates} updates=${UPDATES:-$updates} python=${PYTHON:-python}
package=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/sd_fairseq
mkdir -p "$out"

train() { # NAME UPDATES LR [more options]: trains, and notes the command
  local name=$1 count=$2 rate=$3
  shift 3
  local command=(fairseq_cli.train "$data" --user-dir "$package" --task switchable_sentence_prediction
    --num-classes "$classes" --init-token 0 --sd-sort-by-length --max-positions 256
    --arch switchable_bart_tiny --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256
    --max-source-positions 256 --max-target-positions 256 --criterion sd_policy_criterion
    --dropout 0.1 --optimizer adam --adam-betas "(0.9, 0.98)" --weight-decay 0.01 --clip-norm 1.0
    --lr-scheduler polynomial_decay --lr "$rate" --warmup-updates $((count / 10)) --total-num-update "$count"
    --max-update "$count" --max-tokens "$tokens" --required-batch-size-multiple 1 --seed "$seed"
    --cpu --num-workers 0 --disable-validation --no-epoch-checkpoints --log-format simple --log-interval 100
    --save-dir "$out/$name" "$@")
  printf '%q ' "python -m" "${command[@]}" | sed "s/python..-m/python -m/; s|$package|sd_fairseq|g" >"$out/$name.command"
  "$python" -m "${command[@]}" >"$out/$name.log" 2>&1
}

predict() { # ROW: scores the last checkpoint (never the best one on the scored file) and records the result
  local row=$1
  local command=(sd_fairseq.commands.classify "$data" --path "$out/$row/checkpoint_last.pt" --input "$raw")
  [[ -z ${COLUMNS_OF:-} ]] || read -ra columns <<<"$COLUMNS_OF"
  [[ -z ${COLUMNS_OF:-} ]] || command+=(--columns "${columns[@]}" --label-column "$LABEL_OF")
  "$python" -m "${command[@]}" --output "$out/$row.jsonl" --summary "$out/$row.summary.json"
  {
    [[ -n ${BASE:-} ]] || { cat "$out/base.command" && echo; }
    cat "$out/$row.command" && echo
    echo "sd-classify ${command[*]:1}" | sed "s|$raw|$(basename "$raw")|g"
  } | sed "s|$package|sd_fairseq|g" >"$out/$row.commands"
  "$python" "${package%/*}/tools/understanding_table.py" "$out/results" --record "$task-$row-$seed" --task "$task" \
    --row "$row" --seed "$seed" --summary "$out/$row.summary.json" --commands "$out/$row.commands"
}

base=${BASE:-}
if [[ -z $base ]]; then
  # --restore-file: START is no teacher, its task is another
  restart=(--reset-optimizer --reset-dataloader --reset-meters --reset-lr-scheduler)
  train base "$base_updates" 5e-4 --sd-policy dense ${START:+--restore-file "$START" "${restart[@]}"}
  base=$out/base/checkpoint_last.pt
fi
train dense "$updates" "$lr" --sd-policy dense --finetune-from-model "$base"
predict dense
train switchable "$updates" "$lr" --finetune-from-model "$base"
predict switchable
"$python" "${package%/*}/tools/understanding_table.py" "$out/results"
