#!/usr/bin/env bash
# MISO attention on an NVIDIA GPU: agreement with float64, then time and memory, with shares of the device's limits.
# Results go to ${OUT:-benchmarks/results/gpu}; a failed check stops it with exit code 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python}"
out="${OUT:-benchmarks/results/gpu}"
mkdir -p "$out"
"$python" benchmarks/gpu/attention.py | tee "$out/attention-agreement.jsonl"
"$python" benchmarks/attention.py --device cuda --heads 32 8 128 --out "$out/attention.jsonl" | tee "$out/attention.txt"
"$python" benchmarks/attention.py --device cuda --heads 32 8 128 --succ 16384 | tee "$out/attention-succ.jsonl"
"$python" benchmarks/step.py --device cuda --dtypes bfloat16 | tee "$out/step.jsonl"
