"""MISO attention on a GPU against float64: values and every gradient; one JSON line for each type.

python benchmarks/gpu/attention.py               # needs CUDA; exit code 1 if anything does not agree
python benchmarks/gpu/attention.py --device cpu  # tries the script itself

float64 and float32 run by the eager kernel and must agree with the definition on the CPU to 1e-10 and 1e-5. bfloat16
and float16 run by the flash kernel: their errors are put beside those of one causal call of torch's own attention
over the same tokens, which is what any training in that type rounds to, and may be at most TOLERATED times them.
"""

import argparse
import json
import sys
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F

from misotune.attention import WEIGHTINGS, miso_attention, reference_attention
from misotune.attention.kernels import select_kernel
from misotune.layout import RowLayout

EXACT = {"float64": 1e-10, "float32": 1e-5}
# A key's gradient is the sum of two calls' results, each rounded already: up to three roundings in place of one.
TOLERATED = 2.0
LENGTHS = [([180, 60, 60, 70, 65, 45], 300), ([33], 20), ([5] * 16, 64), ([128, 512], 257)]
HEADS = {"mha": (8, 8), "gqa": (32, 8), "mqa": (8, 1)}
WINDOWS = (None, 200)


def values_and_gradients(attention, qkv, grad):
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def relative_errors(got, wanted) -> list[float]:
    return [((a.double().cpu() - b.cpu()).norm() / b.cpu().norm()).item() for a, b in zip(got, wanted, strict=True)]


def with_weights(layout: RowLayout) -> RowLayout:
    """Gives every sample weights of its own, which only the weighting `fixed` reads."""
    counts = [range(1, len(sample.inputs) + 1) for sample in layout.samples]
    weights = [tuple(i / sum(count) for i in count) for count in counts]
    samples = (s._replace(weights=w) for s, w in zip(layout.samples, weights, strict=True))
    return replace(layout, samples=tuple(samples))


def causal(q, k, v):
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


def check(dtype, kind: str, weighting: str, window: int | None, device: str) -> dict:
    """Returns the largest error of values and gradients, and what it is measured by."""
    layout = with_weights(RowLayout.from_lengths(LENGTHS))
    generator = torch.Generator().manual_seed(0)
    shapes = [(layout.num_tokens, n, 64) for n in (HEADS[kind][0], HEADS[kind][1], HEADS[kind][1])]
    qkv = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    grad = torch.randn(shapes[0], generator=generator).to(dtype)
    exact = [x.double() for x in qkv], grad.double()
    options = {"weighting": weighting, "window": window}
    wanted = values_and_gradients(lambda *x: reference_attention(*x, layout, **options), *exact)
    on_device = [x.to(device) for x in qkv], grad.to(device)
    got = values_and_gradients(lambda *x: miso_attention(*x, layout, **options), *on_device)
    errors = relative_errors(got, wanted)
    name = str(dtype).removeprefix("torch.")
    if name in EXACT:
        return {"error": max(errors), "agrees": max(errors) < EXACT[name]}
    usual = relative_errors(values_and_gradients(causal, *on_device), values_and_gradients(causal, *exact))
    ratios = [round(a / b, 2) for a, b in zip(errors, usual, strict=True)]
    return {"error": max(errors), "causal_error": max(usual), "ratios": ratios, "agrees": max(ratios) <= TOLERATED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --device cpu tries the script itself")
    hardware = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    all_agree = True
    for name in ("float64", "float32", "bfloat16", "float16"):
        dtype = getattr(torch, name)
        found = {
            f"{weighting}-{kind}-{'window' if window else 'full'}": check(dtype, kind, weighting, window, device)
            for weighting, kind, window in product(WEIGHTINGS, HEADS, WINDOWS)
        }
        worst = max(found, key=lambda key: max(found[key].get("ratios", [found[key]["error"]])))
        agrees = all(entry["agrees"] for entry in found.values())
        all_agree &= agrees
        kernel = select_kernel("auto", torch.device(device), dtype, 64).name
        line = {"hardware": hardware, "torch": torch.__version__, "dtype": name, "kernel": kernel, "agrees": agrees}
        print(json.dumps({**line, "cases": len(found), "worst": {worst: found[worst]}}), flush=True)
    sys.exit(0 if all_agree else 1)


if __name__ == "__main__":
    main()
