"""MISO attention on a GPU against the CPU's reference in float64; one JSON line with what was found.

python benchmarks/gpu/attention.py            # needs CUDA; exit code 1 if it does not agree to 1e-10
python benchmarks/gpu/attention.py --device cpu   # tries the script itself
"""

import argparse
import json
import sys

import torch

from misotune.attention import WEIGHTINGS, miso_attention, reference_attention
from misotune.layout import RowLayout

TOLERANCE = 1e-10
LENGTHS = [([180, 60, 60, 70, 65, 45], 300), ([33], 20), ([5] * 16, 64)]
HEADS = {"mha": (8, 8), "gqa": (9, 3), "mqa": (8, 1)}


def largest_differences(device: str) -> dict[str, float]:
    """Returns the largest difference of values and gradients for each weighting and kind of heads."""
    layout = RowLayout.from_lengths(LENGTHS)
    found = {}
    for kind, (num_heads, num_kv_heads) in HEADS.items():
        generator = torch.Generator().manual_seed(0)
        shapes = [(layout.num_tokens, n, 64) for n in (num_heads, num_kv_heads, num_kv_heads)]
        qkv = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        grad = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
        for weighting in WEIGHTINGS:
            expected = run(reference_attention, qkv, grad, layout, weighting)
            got = run(miso_attention, [x.to(device) for x in qkv], grad.to(device), layout, weighting)
            pairs = zip(got, expected, strict=True)
            found[f"{weighting}-{kind}"] = max((a.cpu() - b).abs().max().item() for a, b in pairs)
    return found


def run(attention, qkv, grad, layout, weighting):
    """Returns the result and the gradients of q, k and v."""
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    out = attention(*leaves, layout, weighting=weighting)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --device cpu tries the script itself")
    found = largest_differences(device)
    hardware = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    agrees = max(found.values()) < TOLERANCE
    print(json.dumps({"hardware": hardware, "torch": torch.__version__, "agrees": agrees, "largest": found}))
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
