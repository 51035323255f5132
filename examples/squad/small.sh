#!/usr/bin/env bash
# A small model on one CPU core, from prepared data to two results: dense and switchable, trained from one dense start
# for as many updates each.
# Usage: small.sh NAME DATA OUT DEV [SEED]
#   NAME     task's name in the results, such as "SQuAD 1.1"   DATA   made by prepare.py with --cloze
#   OUT      folder for checkpoints, logs and results/*.json   DEV    the SQuAD file that is scored, as raw as it came
# Environment: BASE (a dense checkpoint to start from instead of training one), CLOZE_UPDATES, BASE_UPDATES, UPDATES,
#   MAX_TOKENS, PYTHON
set -euo pipefail
task=$1 data=$2 out=$3 dev=$4 seed=${5:-1}
cloze_updates=${CLOZE_UPDATES:-900} base_updates=${BASE_UPDATES:-450} updates=${UPDATES:-600}
tokens=${MAX_TOKENS:-3072} python=${PYTHON:-python}
package=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/sd_fairseq
mkdir -p "$out"

train() { # NAME UPDATES LR [more options]: trains, and notes the command
  local name=$1 count=$2 rate=$3
  shift 3
  local command=(fairseq_cli.train "$data" --user-dir "$package" --task switchable_squad
    --max-positions 320 --sd-stride 128 --sd-question-tokens 48
    --arch switchable_bart_tiny --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256
    --max-source-positions 320 --max-target-positions 320 --criterion sd_policy_criterion
    --dropout 0.1 --optimizer adam --adam-betas "(0.9, 0.98)" --weight-decay 0.01 --clip-norm 1.0
    --lr-scheduler polynomial_decay --lr "$rate" --warmup-updates $((count / 10)) --total-num-update "$count"
    --max-update "$count" --max-tokens "$tokens" --required-batch-size-multiple 1 --seed "$seed"
    --cpu --num-workers 0 --disable-validation --no-epoch-checkpoints --log-format simple --log-interval 50
    --save-dir "$out/$name" "$@")
  printf '%q ' "python -m" "${command[@]}" | sed "s/python..-m/python -m/; s|$package|sd_fairseq|g" >"$out/$name.command"
  "$python" -m "${command[@]}" >"$out/$name.log" 2>&1
}

predict() { # ROW: answers with the last checkpoint (never the best one on the scored file) and records the results
  local row=$1 metric
  local command=(sd_fairseq.commands.answer "$data" --path "$out/$row/checkpoint_last.pt" --input "$dev")
  "$python" -m "${command[@]}" --output "$out/$row.predictions.json" --decisions "$out/$row.decisions.jsonl" \
    --summary "$out/$row.summary.json"
  {
    for name in cloze base; do
      [[ -n ${BASE:-} ]] || { cat "$out/$name.command" && echo; }
    done
    cat "$out/$row.command" && echo
    echo "sd-answer ${command[*]:1}" | sed "s|$dev|$(basename "$dev")|g"
  } >"$out/$row.commands"
  for metric in exact f1; do
    "$python" "${package%/*}/tools/understanding_table.py" "$out/results" --task "$task" --row "$row" --seed "$seed" \
      --record "$(tr 'A-Z .' 'a-z--' <<<"$task")-$metric-$row-$seed" --metric "$metric" \
      --summary "$out/$row.summary.json" --commands "$out/$row.commands"
  done
}

base=${BASE:-}
if [[ -z $base ]]; then
  train cloze "$cloze_updates" 1e-3 --sd-policy dense --train-subset cloze
  # --restore-file: cloze questions are no teacher
  train base "$base_updates" 5e-4 --sd-policy dense --restore-file "$out/cloze/checkpoint_last.pt" \
    --reset-optimizer --reset-dataloader --reset-meters --reset-lr-scheduler
  base=$out/base/checkpoint_last.pt
fi
train dense "$updates" 2e-4 --sd-policy dense --finetune-from-model "$base"
predict dense
train switchable "$updates" 2e-4 --finetune-from-model "$base"
predict switchable
"$python" "${package%/*}/tools/understanding_table.py" "$out/results"
