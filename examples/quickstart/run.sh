#!/usr/bin/env bash
# The demo: what one does with a BART of one's own, on two CPU cores, with real text.
#
#   1. prepare   the 20,027 + 1,000 + 1,000 Debian descriptions for fairseq, in the vocabulary of the base
#   2. train     side by side, from the same BART (the base), on the same batches, for as many updates:
#                dense control    --sd-policy dense: the same command, nothing skipped
#                switchable       the command that README shows, every --sd-* option left to the preset
#   3. generate  beam 4: the base on the fast generator, the control, the learned paths, random decisions at equal FLOPs
#   4. report    table, report.json and pictures
#
# Usage: run.sh [OUT]   (default runs/demo). UPDATES, SEED, TEST_SUBSET (test or valid), THREADS and PYTHON change the
# run; DATA is another folder of {train,valid}.jsonl.gz, BASE one of another base.pt and its vocabulary; POLICY_OPTIONS
# are added to the switchable training. A run that was stopped goes on where it was.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-runs/demo}
python=${PYTHON:-python3}
updates=${UPDATES:-600} seed=${SEED:-1} subset=${TEST_SUBSET:-test}
threads=${THREADS:-$(getconf _NPROCESSORS_ONLN)}
half=$((threads > 1 ? threads / 2 : 1))
base=${BASE:-$root/results/debian/base} pairs=${DATA:-$root/examples/data/debian}
mkdir -p "$out"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONWARNINGS=ignore
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

step() { printf '\n== %s (%d s since the start)\n' "$1" "$SECONDS"; }
tool() { "$python" -m "sd_fairseq.commands.$1" "${@:2}"; } # sd-match-random and sd-report, also where nothing is installed
fairseq() { OMP_NUM_THREADS=$threads "$python" -m "fairseq_cli.$1" "${@:2}"; }

step "prepare"
"$python" "$root/examples/tradeoff/split.py" "$pairs" "$out/split"
"$python" "$here/prepare.py" --data "$out/split" --vocabulary "$base" "$out/data"
data=$out/data/data-bin

task=(--user-dir "$root/sd_fairseq" --task switchable_translation -s source -t target --truncate-source --cpu)
# bfloat16 products where the processor has them
if grep -qs avx512_bf16 /proc/cpuinfo; then faster=(--amp); else faster=(); fi

show_progress() { # NAME; the lines of fairseq's log that tell how far it is and what the policy does
  while IFS= read -r line; do
    case $line in
      *"| train_inner | "* | *"| policy: "* | *"| preset "* | *WARNING*)
        line=${line#*| INFO | }
        printf '[%s] %.150s\n' "$1" "${line#* | }" ;;
    esac
  done
}

train() { # NAME then more options; the last checkpoint is OUT/NAME/checkpoint_last.pt
  fairseq train "$data" "${task[@]}" ${faster[@]+"${faster[@]}"} --finetune-from-model "$base/base.pt" \
    --arch switchable_bart --criterion sd_policy_criterion --label-smoothing 0.1 --dropout 0.1 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --weight-decay 0.01 \
    --lr 4e-4 --lr-scheduler polynomial_decay --warmup-updates 20 --total-num-update "$updates" --max-update "$updates" \
    --max-tokens 1536 --required-batch-size-multiple 1 --seed "$seed" --num-workers 0 \
    --log-format simple --log-interval 50 --no-epoch-checkpoints --save-interval-updates 200 \
    --keep-interval-updates 1 --disable-validation --save-dir "$out/$1" "${@:2}" 2>"$out/$1.err" |
    tee "$out/$1.log" |
    show_progress "$1" ||
    { tail -n 20 "$out/$1.err" >&2; exit 1; }
}

step "train on, side by side: the dense control and the switchable model, $updates updates each"
all_threads=$threads threads=$half
train dense_control --sd-policy dense &
control=$!
train switchable ${POLICY_OPTIONS:-} &
wait $!
wait $control
threads=$all_threads

generate() { # NAME CHECKPOINT then more options; what is finished is not made again
  [[ -s $out/$1.gen.txt && $out/$1.gen.txt -nt $2 ]] && return
  fairseq generate "$data" "${task[@]}" --path "$2" --gen-subset "$subset" --beam 4 --lenpen 1.0 --max-len-b 40 \
    --no-repeat-ngram-size 3 --max-tokens 8192 --post-process sentencepiece --scoring sd_rouge \
    --sd-trace "$out/$1.trace.jsonl" "${@:3}" >"$out/$1.gen.part" 2>"$out/$1.gen.err" ||
    { tail -n 20 "$out/$1.gen.err" >&2; exit 1; }
  mv "$out/$1.gen.part" "$out/$1.gen.txt"
  tail -n 1 "$out/$1.gen.txt"
}

step "generate: the base as it came, no training"
generate dense "$base/base.pt"
step "generate: the dense control"
generate dense_control "$out/dense_control/checkpoint_last.pt"
step "generate: learned paths"
generate switchable "$out/switchable/checkpoint_last.pt"
step "generate: the switchable model under random decisions at equal FLOPs"
keep=$(tool match_random "$data" --path "$out/switchable/checkpoint_last.pt" --trace "$out/switchable.trace.jsonl")
generate random "$out/switchable/checkpoint_last.pt" --sd-path "random:$keep"

step "report"
tool report --data-name debian_descriptions --output-dir "$out" --title "Debian descriptions, $updates updates, seed $seed" \
  --dense "$out/dense.gen.txt" "$out/dense.trace.jsonl" \
  --dense-control "$out/dense_control.gen.txt" "$out/dense_control.trace.jsonl" \
  --switchable "$out/switchable.gen.txt" "$out/switchable.trace.jsonl" \
  --random "$out/random.gen.txt" "$out/random.trace.jsonl"
printf '\nDone in %d s. %s/report.json, skip_heatmap.png and tradeoff.png are written.\n' "$SECONDS" "$out"
