#!/usr/bin/env bash
# The quick start: a dense BART and a switchable BART on real text, side by side, on two CPU cores.
#
#   1. prepare     SentencePiece and fairseq-preprocess on the embedded Debian descriptions
#   2. warm start  a small BART learns to reproduce the beginning of its source (in place of BART's pre-training)
#   3. base        trained on document -> synopsis by plain fairseq
#   4. dense       the base, trained on as plain BART
#   5. switchable  the base, trained on for as many updates with --criterion sd_policy_criterion
#   6. generate    fairseq-generate, beam 4, for dense, switchable and random decisions at equal FLOPs
#   7. report      table, report.json and pictures
#
# Usage: run.sh [OUT]   (default runs/demo). WARM_UPDATES, BASE_UPDATES, MORE_UPDATES set the length of the training,
# POLICY_OPTIONS adds options to the training with a policy,
# TEST_SUBSET the split that is generated (test by default), PYTHON the interpreter.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-runs/demo}
python=${PYTHON:-python3}
warm_updates=${WARM_UPDATES:-400}
base_updates=${BASE_UPDATES:-900}
more_updates=${MORE_UPDATES:-600}
subset=${TEST_SUBSET:-test}
seed=${SEED:-1}
total_updates=$((warm_updates + base_updates + more_updates))
mkdir -p "$out"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONWARNINGS=ignore

threads=${THREADS:-$(getconf _NPROCESSORS_ONLN)}
half=$((threads > 1 ? threads / 2 : 1))
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

step() { printf '\n== %s (%d s since the start)\n' "$1" "$SECONDS"; }
fairseq() { OMP_NUM_THREADS=$threads "$python" -m "fairseq_cli.$1" "${@:2}"; }
side_by_side() { for job in "$@"; do wait "$job"; done; }

step "prepare"
"$python" "$here/prepare.py" --data "$here/data" --vocab-size 4000 "$out/data"
data=$out/data/data-bin

task=(--user-dir "$root/sd_fairseq" --task switchable_translation -s source -t target
  --max-source-positions 128 --max-target-positions 64 --truncate-source)
size=(--encoder-layers 4 --decoder-layers 4 --encoder-embed-dim 128 --decoder-embed-dim 128
  --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512 --encoder-attention-heads 4 --decoder-attention-heads 4
  --dropout 0.1 --share-all-embeddings)
training=(--optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --weight-decay 0.01 --label-smoothing 0.1
  --max-tokens 2048 --required-batch-size-multiple 1 --seed "$seed" --cpu --num-workers 0
  --log-format simple --log-interval 50 --no-epoch-checkpoints --save-interval 1000
  --validate-interval 1000)

show_progress() { # NAME; the lines of fairseq's log that tell how far it is
  while IFS= read -r line; do
    case $line in
      *"| train_inner | "* | *"| valid | "*)
        line=${line#*| INFO | }
        printf '[%s] %.150s\n' "$1" "${line#* | }" ;;
    esac
  done
}

train() { # NAME DATA then fairseq-train's options; the last checkpoint is OUT/NAME/checkpoint_last.pt
  fairseq train "$2" "${task[@]}" "${size[@]}" "${training[@]}" --save-dir "$out/$1" \
    --tensorboard-logdir "$out/$1/tensorboard" "${@:3}" 2>"$out/$1.err" |
    tee "$out/$1.log" |
    show_progress "$1" ||
    { cat "$out/$1.err" >&2; exit 1; }
}

# BART's own initialisation (standard deviation 0.02) is made for 1024 dimensions; at 128 a model starts too flat to
# learn in minutes. fairseq's transformer is the same network with these options, initialised by its dimensions.
fresh=(--arch transformer --activation-fn gelu --encoder-learned-pos --decoder-learned-pos --layernorm-embedding
  --no-scale-embedding --share-decoder-input-output-embed)
restart=(--reset-optimizer --reset-dataloader --reset-meters --reset-lr-scheduler)
plain=(--criterion label_smoothed_cross_entropy)

step "warm start: $warm_updates updates, document -> its first words"
train warm "$out/data/lead-bin" "${fresh[@]}" "${plain[@]}" \
  --lr 1.5e-3 --lr-scheduler inverse_sqrt --warmup-updates 150 --max-update "$warm_updates"

step "train the base: $base_updates updates of plain BART (fairseq's own model and criterion)"
train base "$data" --arch bart_base "${plain[@]}" --restore-file "$out/warm/checkpoint_last.pt" "${restart[@]}" \
  --lr 1.2e-3 --lr-scheduler polynomial_decay --warmup-updates 100 --total-num-update $((base_updates * 3 / 2)) \
  --max-update "$base_updates"

continue=(--restore-file "$out/base/checkpoint_last.pt" "${restart[@]}" --lr 5e-4 --lr-scheduler polynomial_decay
  --warmup-updates 20 --total-num-update "$more_updates" --max-update "$more_updates")

step "train on, side by side: dense BART and BART with a policy, $more_updates updates, $total_updates in all"
threads=$half
train dense "$data" --arch bart_base "${plain[@]}" "${continue[@]}" &
dense_job=$!
train switchable "$data" --arch switchable_bart_tiny --criterion sd_policy_criterion --sd-initial-keep 0.9 \
  --sd-policy-lr 2e-4 --sd-tolerance 0.03 --sd-constraint-interval 2 --sd-settle-share 0 --sd-policy-freeze-update $((more_updates * 2 / 5)) \
  "${continue[@]}" ${POLICY_OPTIONS:-} &
side_by_side $! $dense_job
threads=${THREADS:-$(getconf _NPROCESSORS_ONLN)}

generate() { # NAME CHECKPOINT then fairseq-generate's options
  fairseq generate "$data" "${task[@]}" --path "$2" --gen-subset "$subset" --beam 4 --lenpen 1.0 --max-len-b 40 \
    --no-repeat-ngram-size 3 --max-tokens 8192 --post-process sentencepiece --scoring sd_rouge --cpu \
    --sd-trace "$out/$1.trace.jsonl" "${@:3}" >"$out/$1.gen.part" 2>"$out/$1.gen.err" ||
    { cat "$out/$1.gen.err" >&2; exit 1; }
  mv "$out/$1.gen.part" "$out/$1.gen.txt"
  tail -n 1 "$out/$1.gen.txt"
}

step "generate: dense"
generate dense "$out/dense/checkpoint_last.pt"
step "generate: switchable, with learned skip paths"
generate switchable "$out/switchable/checkpoint_last.pt"
step "generate: the switchable model under random decisions at equal FLOPs"
keep=$("$python" -m sd_fairseq.plugin.match_random "$data" --path "$out/switchable/checkpoint_last.pt" \
  --trace "$out/switchable.trace.jsonl")
generate random "$out/switchable/checkpoint_last.pt" \
  --model-overrides "{'sd_policy': 'random', 'sd_random_keep': $keep}"

step "report"
"$python" -m sd_fairseq.evaluation.report --data-name debian_descriptions --output-dir "$out" \
  --title "Debian descriptions, $total_updates updates each, seed $seed" \
  --dense "$out/dense.gen.txt" "$out/dense.trace.jsonl" \
  --switchable "$out/switchable.gen.txt" "$out/switchable.trace.jsonl" \
  --random "$out/random.gen.txt" "$out/random.trace.jsonl"
printf '\nDone in %d s. %s/report.json, skip_heatmap.png and tradeoff.png are written.\n' "$SECONDS" "$out"
