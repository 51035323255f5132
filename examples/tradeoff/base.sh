#!/usr/bin/env bash
# The dense base that every row starts from, in four steps: document -> its first pieces (warm), document -> some
# consecutive pieces of it (span), document -> summary (base), the same under random decisions (robust). Run it again to
# go on after an interruption; what is finished is not trained again. The committed base went on from the third step with
# larger batches, see results/debian/base/README.md.
#
# Usage: base.sh DATA OUT
#   DATA  made by examples/quickstart/prepare.py --span     OUT/base.pt  the base, a plain BART
# Environment: DIM, FFN, LAYERS (of each stack), HEADS, {WARM,SPAN,BASE,ROBUST}_UPDATES, {WARM,SPAN,BASE,ROBUST}_LR,
#   {MAX,ROBUST}_TOKENS (of an update), KEEP (keep-probability of the random decisions), SOURCE_TOKENS (longer documents
#   are cut), SEED, THREADS, PYTHON, DEVICE_OPTIONS ("--cpu --amp": products in bfloat16; "--fp16" on a GPU)
set -euo pipefail

if [[ $# -ne 2 ]]; then
  echo "usage: base.sh DATA OUT" >&2
  exit 2
fi
data=$1 out=$2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dim=${DIM:-256} ffn=${FFN:-1024} layers=${LAYERS:-6} heads=${HEADS:-4}
warm_updates=${WARM_UPDATES:-500} span_updates=${SPAN_UPDATES:-400} base_updates=${BASE_UPDATES:-3000}
robust_updates=${ROBUST_UPDATES:-700}
read -ra device <<<"${DEVICE_OPTIONS---cpu --amp}"
for folder in lead-bin span-bin data-bin; do
  if [[ ! -d $data/$folder ]]; then
    echo "base.sh: error: $data holds no $folder; make it with examples/quickstart/prepare.py --span" >&2
    exit 1
  fi
done
mkdir -p "$out"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONWARNINGS=ignore
export OMP_NUM_THREADS=${THREADS:-$(getconf _NPROCESSORS_ONLN)}

train() { # NAME UPDATES DATA then fairseq-train's options; OUT/NAME/finished says for how many updates it was trained
  local name=$1 updates=$2 source=$3 signature
  shift 3
  signature="$updates updates, $layers+$layers layers, C $dim, F $ffn"
  if [[ -f $out/$name/finished ]]; then
    if [[ $(<"$out/$name/finished") == "$signature" ]]; then
      echo "$name: finished before"
      return
    fi
    echo "base.sh: error: $out/$name was trained otherwise ($(<"$out/$name/finished")); give another OUT" >&2
    exit 1
  fi
  mkdir -p "$out/$name"
  "${PYTHON:-python3}" -m fairseq_cli.train "$source" --user-dir "$root/sd_fairseq" --task switchable_translation \
    -s source -t target --max-source-positions "${SOURCE_TOKENS:-192}" --max-target-positions 64 --truncate-source \
    --encoder-layers "$layers" --decoder-layers "$layers" --encoder-embed-dim "$dim" --decoder-embed-dim "$dim" \
    --encoder-ffn-embed-dim "$ffn" --decoder-ffn-embed-dim "$ffn" \
    --encoder-attention-heads "$heads" --decoder-attention-heads "$heads" --share-all-embeddings \
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --weight-decay 0.01 \
    --max-tokens "${MAX_TOKENS:-2048}" --required-batch-size-multiple 1 --seed "${SEED:-1}" --num-workers 0 \
    "${device[@]}" --log-format json --log-interval 50 --no-epoch-checkpoints \
    --save-interval-updates 500 --keep-interval-updates 1 --validate-interval-updates 500 \
    --save-dir "$out/$name" --max-update "$updates" "$@" 2>&1 |
    tee -a "$out/$name/train.log" |
    { grep --line-buffered -E '\| (train_inner|valid) \||error' || true; }
  echo "$signature" >"$out/$name/finished"
}

# BART's own initialisation (standard deviation 0.02) is made for 1024 dimensions; fairseq's transformer is the same
# network with these options, initialised by its dimensions. Dropout only hinders what cannot overfit in half an epoch.
train warm "$warm_updates" "$data/lead-bin" --arch transformer --activation-fn gelu \
  --encoder-learned-pos --decoder-learned-pos --layernorm-embedding --no-scale-embedding \
  --share-decoder-input-output-embed --dropout 0 --lr "${WARM_LR:-7e-4}" --lr-scheduler inverse_sqrt --warmup-updates 150

# --finetune-from-model gives the start once and leaves a checkpoint of the step's own alone, so that it resumes.
# From the first pieces straight to summaries, the model forgets to read within a hundred updates.
train span "$span_updates" "$data/span-bin" --arch bart_base --finetune-from-model "$out/warm/checkpoint_last.pt" \
  --dropout 0 --lr "${SPAN_LR:-3e-4}" --lr-scheduler inverse_sqrt --warmup-updates 50
train base "$base_updates" "$data/data-bin" --arch bart_base --finetune-from-model "$out/span/checkpoint_last.pt" \
  --dropout 0.1 --lr "${BASE_LR:-4e-4}" --lr-scheduler polynomial_decay --warmup-updates 200 \
  --total-num-update "$base_updates"
# A sub-layer that was never missed cannot be spared. Random decisions for every document teach the model to do with less,
# as LayerDrop does (Fan et al., ICLR 2020); run whole, it is a plain BART again.
MAX_TOKENS=${ROBUST_TOKENS:-3072} train robust "$robust_updates" "$data/data-bin" --arch switchable_bart_tiny \
  --criterion sd_policy_criterion --sd-policy random --sd-random-keep "${KEEP:-0.85}" \
  --sd-token-strategies keep,last:10,last:20,last:30,last:40,last:50,uniform:25,uniform:33,uniform:50 \
  --finetune-from-model "$out/base/checkpoint_last.pt" --dropout 0 --lr "${ROBUST_LR:-3e-4}" \
  --lr-scheduler polynomial_decay --warmup-updates 30 --total-num-update "$robust_updates"
"${PYTHON:-python3}" -m sd_fairseq.commands.export "$out/robust/checkpoint_last.pt" "$out/base.pt" --path dense
echo "base: $out/base.pt"
