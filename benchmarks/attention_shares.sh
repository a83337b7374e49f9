#!/usr/bin/env bash
# Where responses look before and after training (docs/inspect-attention.md): a chat model as it is, after SFT and after
# MISO-para on the same rows, on rows of the starter set that none of them was trained on.
#   benchmarks/attention_shares.sh FOLDER_OF_THE_MODEL [DATA] [WORK]
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
model="$(realpath "$1")"
data="$(realpath "${2:-$here/../shared/data}")"
mkdir -p "${3:-attention-shares}"
cd "${3:-attention-shares}"
misotune="${MISOTUNE:-misotune}"
rows="$data/follow_complex_instruction/joined_train.jsonl.gz"
[ -d data/train ] || "$misotune" prepare "$rows" --mode para --limit "${ROWS:-96}" --out data/train
for mode in sft para; do
    [ -d "runs/$mode/final" ] || "$misotune" train "$here/recipes/quickstart.yaml" "name=$mode" "miso.mode=$mode" \
        "model.name=$model" data.path=data/train data.max_dropped=0.2 train.epochs=1
done
for way in "" --generate; do
    "$misotune" inspect attention "$model" runs/sft runs/para --limit "${LIMIT:-24}" $way --max-new-tokens 160 \
        --out "inspect/attention${way:+-generated}"
done
