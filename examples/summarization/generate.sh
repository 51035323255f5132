#!/usr/bin/env bash
# Generates with learned skip paths, one shard a GPU, and scores all shards together as files2rouge does.
# Usage: generate.sh DATA_BIN CHECKPOINT OUT [more options of fairseq-generate]
# Environment: SHARDS (default: the GPUs), NAME, BEAM, LENPEN, MINLEN, MAXLEN, PRECISION
# Over several machines: SHARDS=64 FIRST_SHARD=0 generate.sh ... on the first, FIRST_SHARD=8 on the second, and so on,
# with OUT on a shared disk; score.sh when all have ended.
set -euo pipefail
data=$1 checkpoint=$2 out=$3
shift 3
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
shards=${SHARDS:-$gpus} first=${FIRST_SHARD:-0} name=${NAME:-switchable}
read -ra precision <<<"${PRECISION---fp16}"
mkdir -p "$out"
running=()
for ((gpu = 0; gpu < gpus && first + gpu < shards; gpu++)); do
  shard=$((first + gpu))
  # one GPU a process; fairseq-generate has --num-shards too, and ignores it
  CUDA_VISIBLE_DEVICES=$gpu fairseq-generate "$data" --user-dir sd_fairseq --task switchable_translation \
    --source-lang source --target-lang target --truncate-source --path "$checkpoint" --gen-subset test --bpe gpt2 \
    --batch-size 32 --beam "${BEAM:-4}" --lenpen "${LENPEN:-2.0}" --min-len "${MINLEN:-55}" \
    --max-len-b "${MAXLEN:-140}" --no-repeat-ngram-size 3 --required-batch-size-multiple 1 \
    --distributed-world-size "$shards" --distributed-rank "$shard" --sd-trace "$out/$name.$shard.trace.jsonl" \
    ${precision[@]+"${precision[@]}"} "$@" >"$out/$name.$shard.gen.txt" &
  running+=($!)
done
for process in "${running[@]}"; do
  wait "$process"
done
