#!/usr/bin/env bash
# Scores and compares what generate.sh wrote for NAME=dense and NAME=switchable, however many shards each has.
# Usage: score.sh OUT [name of the data, for the signature]
set -euo pipefail
out=$1 data_name=${2:-cnn_dm}
merged() { # all files of one system, comma-separated
  local files=("$out/$1".*."$2")
  local IFS=,
  echo "${files[*]}"
}
sd-report --dense "$(merged dense gen.txt)" "$(merged dense trace.jsonl)" \
  --switchable "$(merged switchable gen.txt)" "$(merged switchable trace.jsonl)" \
  --data-name "$data_name" --title "$data_name" --output-dir "$out/report"
