#!/usr/bin/env bash
# Compares MISO attention on the GPU with the CPU's in float64: values and every gradient, all weightings.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" benchmarks/gpu/attention.py "$@"
