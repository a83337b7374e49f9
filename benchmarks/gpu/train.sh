#!/usr/bin/env bash
# Whole training on one NVIDIA GPU: full fine-tuning of Llama-3.2-3B's shape and LoRA of Llama-3-8B's, rows of 4,096 tokens,
# SFT, MISO-para and MISO-succ, with and without computing activations again. One JSON line each, in
# ${OUT:-benchmarks/results/gpu}/train.jsonl. Goal on an H200: MFU 0.45 without computing again, 0.38 with it, MISO at least
# 0.95 of SFT's tokens/s. It needs about 32 GB of disk for the models.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python}"
out="${OUT:-benchmarks/results/gpu}"
mkdir -p "$out"
for mode in sft para succ; do
    for again in "" --gradient-checkpointing; do
        "$python" benchmarks/gpu/train.py --shape llama-3.2-3b --mode "$mode" $again | tee -a "$out/train.jsonl"
        "$python" benchmarks/gpu/train.py --shape llama-3-8b --lora --mode "$mode" $again | tee -a "$out/train.jsonl"
    done
done
