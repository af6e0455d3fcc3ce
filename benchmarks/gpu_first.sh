#!/bin/bash
# First light on a GPU, in one command of at most nine minutes, from the repository's root. Rows: $OUT/rows.jsonl.
#   python benchmarks/gpu_travel.py --pictures FOLDER      before, on a machine with the network: makes .gpu/
#   benchmarks/gpu_first.sh [--rehearse]                   there
exec "$(dirname "$0")/gpu_session.sh" first "$@"
