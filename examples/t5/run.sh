#!/usr/bin/env bash
# A pretrained T5 learns to skip: import, tokenize, dense fine-tuning, switchable fine-tuning, generation, comparison.
#
# Usage: run.sh SOURCE [OUT]   SOURCE: folder of a pretrained T5 (see README.md); OUT: default runs/t5.
# DENSE and UPDATES (updates of the two trainings), TOKENS (of a batch), TRAIN and VALID (pairs), DATA (folder of their
# files), ARCH, THREADS and PYTHON change the run. What is there already is not made again.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
source=$1 out=${2:-runs/t5}
python=${PYTHON:-python3}
dense=${DENSE:-200} updates=${UPDATES:-600}
mkdir -p "$out"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONWARNINGS=ignore OMP_NUM_THREADS=${THREADS:-2}

step() { printf '\n== %s (%d s since the start)\n' "$1" "$SECONDS"; }
tool() { "$python" -m "sd_fairseq.commands.$1" "${@:2}"; }
fairseq() { "$python" -m "fairseq_cli.$1" "${@:2}"; }
task=(--user-dir "$root/sd_fairseq" --task switchable_translation -s source -t target)

step "import"
[ -f "$out/model/model.pt" ] || tool import_weights "$source" "$out/model"

step "text -> the model's own ids -> fairseq's format"
if [ ! -d "$out/data" ]; then
  "$python" "$here/prepare.py" "${DATA:-$root/examples/data/debian}" "$out/text" \
    --train "${TRAIN:-0}" --valid "${VALID:-200}"
  for split in train valid; do
    for side in source target; do
      tool encode "$out/model/tokenizer.json" "$out/text/$split.$side" "$out/text/$split.ids.$side"
    done
  done
  fairseq preprocess "${task[@]}" --trainpref "$out/text/train.ids" --validpref "$out/text/valid.ids" \
    --srcdict "$out/model/dict.txt" --joined-dictionary --destdir "$out/data" >"$out/preprocess.log" 2>&1
fi

train() { # NAME, BASE, UPDATES, then more options
  [ -f "$out/$1/checkpoint_last.pt" ] || fairseq train "$out/data" "${task[@]}" --truncate-source \
    --max-source-positions 256 --arch "${ARCH:-switchable_t5}" --finetune-from-model "$2" \
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr 5e-4 --lr-scheduler polynomial_decay \
    --warmup-updates 20 --total-num-update $(($3 * 3 / 2)) --max-update "$3" --max-tokens "${TOKENS:-2048}" --dropout 0.1 \
    --required-batch-size-multiple 1 --num-workers 0 --seed 1 --cpu --log-format simple --log-interval 20 \
    --no-epoch-checkpoints --disable-validation --save-dir "$out/$1" "${@:4}" 2>"$out/$1.err" >"$out/$1.log"
}

generate() { # NAME, CHECKPOINT, then more options
  fairseq generate "$out/data" "${task[@]}" --truncate-source --max-source-positions 256 --path "$2" \
    --gen-subset valid --beam 4 --max-len-b 30 --max-tokens 4096 --cpu --num-workers 0 \
    --bpe sd_tokenizer --sd-tokenizer "$out/model/tokenizer.json" --sd-trace "$out/$1.jsonl" "${@:3}" \
    2>"$out/$1.generate.log" >"$out/$1.txt"
  grep '^sd_fairseq: ' "$out/$1.generate.log" | grep -v WARNING
}

step "dense fine-tuning"
train dense "$out/model/model.pt" "$dense" --sd-policy dense --criterion label_smoothed_cross_entropy

step "policy and backbone, from the dense model"
train switchable "$out/dense/checkpoint_last.pt" "$updates" --criterion sd_policy_criterion
grep 'policy: ' "$out/switchable.log" | tail -2 || true

step "generation"
generate dense "$out/dense/checkpoint_last.pt" --sd-path dense
generate switchable "$out/switchable/checkpoint_last.pt"

step "comparison"
tool report --dense "$out/dense.txt" "$out/dense.jsonl" \
  --switchable "$out/switchable.txt" "$out/switchable.jsonl" --output-dir "$out/report"
