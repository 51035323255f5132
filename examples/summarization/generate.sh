#!/usr/bin/env bash
# Generates with learned skip paths and scores as files2rouge does.
# Usage: generate.sh DATA_BIN CHECKPOINT OUT; environment: BEAM LENPEN MINLEN MAXLEN
set -euo pipefail
data=$1 checkpoint=$2 out=$3
mkdir -p "$out"
fairseq-generate "$data" --user-dir sd_fairseq --task switchable_translation --source-lang source --target-lang target \
  --truncate-source --path "$checkpoint" --gen-subset test --bpe gpt2 --batch-size 32 --fp16 \
  --beam "${BEAM:-4}" --lenpen "${LENPEN:-2.0}" --min-len "${MINLEN:-55}" --max-len-b "${MAXLEN:-140}" \
  --no-repeat-ngram-size 3 --sd-trace "$out/switchable.trace.jsonl" --scoring sd_rouge --sd-rouge-ptb >"$out/switchable.gen.txt"
tail -n 1 "$out/switchable.gen.txt"
