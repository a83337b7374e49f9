"""Forward and backward of MISO attention against other ways to compute it, in one run: time and peak memory.

    python benchmarks/attention.py                                   # CPU, float32 and bfloat16
    python benchmarks/attention.py --device cuda --heads 32 8 128    # a GPU; bfloat16 alone
    python benchmarks/attention.py --shapes 16x128+512 4x4096+512    # n inputs of 128 tokens, output of 512
    python benchmarks/attention.py --succ 16384                      # chunks of one input against the whole

Against, over the same tokens:

    causal   one causal call over the row, as if it were one sample: what plain fine-tuning costs
    pairs    a batch of n rows [x_i ; y], one a pair: what the definition (equation 3) costs
    mask     one call with a dense mask in which the output sees all inputs (only `vanilla` can be had so)

The contenders take turns, round by round, so that a machine that grows slower slows all of them; the figures are
medians of rounds, and ratios are to `causal`. Peak memory is what one forward and backward allocates beyond q, k,
v and the gradient. Lines of JSON go to --out; read `times causal` first.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from misotune.attention import MisoArguments, miso_attention
from misotune.attention.spans import SampleSpans, Span
from misotune.layout import RowLayout
from misotune.processor import processor_name

# n inputs of so many tokens each, and the output's tokens; from small to large.
SHAPES = [
    (1, 64, 64),
    (2, 64, 64),
    (4, 64, 64),
    (1, 256, 256),
    (2, 128, 256),
    (8, 64, 64),
    (4, 64, 256),
    (2, 256, 64),
    (2, 256, 256),
    (16, 64, 64),
    (4, 256, 64),
    (4, 256, 256),
    (8, 128, 256),
    (1, 1024, 512),
    (2, 64, 2048),
    (4, 64, 2048),
    (16, 128, 512),
    (8, 512, 256),
    (2, 1024, 1024),
    (4, 1024, 2048),
    (16, 256, 2048),
    (2, 4096, 512),
    (4, 4096, 512),
    (16, 1024, 64),
]
# Above this many tokens the quadratic contenders are left out.
MOST_TOKENS_FOR_MASK = 8192

# Dense bfloat16 TFLOP/s and memory GB/s, from NVIDIA's data sheets (SXM).
DEVICE_LIMITS = {"H200": (989.0, 4800.0), "H100": (989.0, 3350.0), "A100": (312.0, 2039.0)}

Contender = Callable[[], None]


def make_contenders(
    n: int, x: int, y: int, heads: tuple[int, int, int], dtype, device: str, weighting: str, kernel: str
):
    """Returns the contenders of a shape, each one forward and backward."""
    num_heads, num_kv_heads, size = heads
    layout = RowLayout.from_lengths([([x] * n, y)])
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    tokens = layout.num_tokens
    row = [random(tokens, heads, size).requires_grad_() for heads in (num_heads, num_kv_heads, num_kv_heads)]
    grad = random(tokens, num_heads, size)
    arguments = MisoArguments(layout, weighting)
    arguments.plan(tokens, None)  # made once for all layers of a model

    def miso() -> None:
        out = miso_attention(*row, layout, weighting=weighting, kernel=kernel, plan=arguments.plan(tokens, None))
        torch.autograd.grad(out, row, grad)

    def sdpa(leaves: list[Tensor], grad: Tensor, **options) -> None:
        q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=num_heads != num_kv_heads, **options)
        torch.autograd.grad(out, leaves, grad)

    batch = [leaf.detach()[None].requires_grad_() for leaf in row]
    contenders: dict[str, Contender] = {
        "miso": miso,
        "causal": lambda: sdpa(batch, grad[None].transpose(1, 2), is_causal=True),
    }
    if n > 1:
        index = torch.stack(
            [torch.cat([torch.arange(i * x, (i + 1) * x), torch.arange(n * x, tokens)]) for i in range(n)]
        )
        pairs = [leaf.detach()[index.to(device)].requires_grad_() for leaf in row]
        pair_grad = grad[index.to(device)].transpose(1, 2)
        contenders["pairs"] = lambda: sdpa(pairs, pair_grad, is_causal=True)
    if n > 1 and tokens <= MOST_TOKENS_FOR_MASK:
        segment = torch.arange(n + 1).repeat_interleave(torch.tensor([x] * n + [y]))
        position = torch.arange(tokens)
        seen = (segment[:, None] == segment) | (segment[:, None] == n)
        mask = (seen & (position <= position[:, None])).to(device)
        contenders["mask"] = lambda: sdpa(batch, grad[None].transpose(1, 2), attn_mask=mask)
    return contenders


def time_rounds(contenders: dict[str, Contender], device: str, seconds: float) -> dict[str, float]:
    """Returns each contender's median time in ms; they take turns for about so many seconds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["miso"]) < 5:
        for name, run in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(run: Contender, device: str) -> float:
    """Returns the most memory that one run holds beyond what was there before, in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    kineto = profiler.profiler.kineto_results
    events = [event for event in kineto.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def products(n: int, x: int, y: int, heads: tuple[int, int, int]) -> float:
    """Returns the floating-point operations of MISO's forward and backward: 2 and 5 products a query and key."""
    pairs_of_tokens = n * x * (x + 1) / 2 + n * x * y + y * (y + 1) / 2
    return 7 * 2 * heads[0] * heads[2] * pairs_of_tokens


def bytes_moved(n: int, x: int, y: int, heads: tuple[int, int, int], itemsize: int) -> float:
    """Returns the least memory traffic: q, k, v, out and their gradients once, the pairs' results written and read."""
    num_heads, num_kv_heads, size = heads
    row = (n * x + y) * size * (2 * num_heads + 2 * num_kv_heads)
    pairs = n * y * size * num_heads if n > 1 else 0
    return itemsize * (3 * row + 2 * pairs)


def measure(shape: tuple[int, int, int], dtype, arguments) -> dict:
    heads = tuple(arguments.heads)
    contenders = make_contenders(*shape, heads, dtype, arguments.device, arguments.weighting, arguments.kernel)
    times = time_rounds(contenders, arguments.device, arguments.seconds)
    peaks = {name: round(peak_mib(run, arguments.device), 2) for name, run in contenders.items()}
    seconds = times["miso"] / 1e3
    record = {
        "shape": "{}x{}+{}".format(*shape),
        "tokens": shape[0] * shape[1] + shape[2],
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {name: round(value, 3) for name, value in times.items()},
        "times_causal": {name: round(value / times["causal"], 3) for name, value in times.items()},
        "peak_mib": peaks,
        "gflops": round(products(*shape, heads) / seconds / 1e9, 1),
        "gbytes_per_s": round(bytes_moved(*shape, heads, dtype.itemsize) / seconds / 1e9, 2),
    }
    if limits := device_limits(arguments.device):
        record["arithmetic_share"] = round(record["gflops"] / 1e3 / limits[0], 3)
        record["memory_share"] = round(record["gbytes_per_s"] / limits[1], 3)
    return record


def measure_succ(num_tokens: int, dtype, arguments) -> dict:
    """Times the inputs' own attention: one input against the same tokens in four chunks (MISO-succ)."""
    num_heads, num_kv_heads, size = arguments.heads
    leaves = [
        torch.randn(num_tokens, n, size).to(arguments.device, dtype).requires_grad_()
        for n in (num_heads, num_kv_heads, num_kv_heads)
    ]
    grad = torch.randn(num_tokens, num_heads, size).to(arguments.device, dtype)

    def contender(k: int) -> Contender:
        step = num_tokens // k
        nothing = Span(num_tokens, num_tokens)
        layout = RowLayout((SampleSpans(tuple(Span(i * step, (i + 1) * step) for i in range(k)), nothing),))

        def run() -> None:
            torch.autograd.grad(miso_attention(*leaves, layout, kernel=arguments.kernel), leaves, grad)

        return run

    times = time_rounds({"miso": contender(4), "whole": contender(1)}, arguments.device, arguments.seconds)
    return {
        "succ": f"{num_tokens} tokens in 4 chunks",
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {name: round(value, 2) for name, value in times.items()},
        "times_a_quarter_of_whole": round(4 * times["miso"] / times["whole"], 3),
    }


def environment(device: str) -> dict:
    """Returns where and with what the figures were taken."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip() or None,
        "hardware": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def device_limits(device: str) -> tuple[float, float] | None:
    """Returns the device's dense bfloat16 TFLOP/s and memory GB/s, where they are known."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((limits for key, limits in DEVICE_LIMITS.items() if key in name), None)


def print_row(record: dict) -> None:
    ratio, ms, peak = record["times_causal"], record["ms"], record["peak_mib"]
    cells = [f"{record['shape']:>12}", f"{record['dtype']:>9}", f"{record['tokens']:>6}"]
    cells += [f"{ms['miso']:>9.2f}", f"{ms['causal']:>9.2f}", f"{ratio['miso']:>7.2f}"]
    cells += [f"{ratio[name]:>7.2f}" if name in ratio else f"{'-':>7}" for name in ("pairs", "mask")]
    cells += [f"{peak[name]:>8.1f}" if name in peak else f"{'-':>8}" for name in ("miso", "causal", "pairs", "mask")]
    cells += [f"{record['gflops']:>8.0f}"]
    cells += [f"{record[key]:>7.0%}" for key in ("arithmetic_share", "memory_share") if key in record]
    print(" ".join(cells), flush=True)


def parse_shape(text: str) -> tuple[int, int, int]:
    inputs, y = text.split("+")
    n, x = inputs.split("x")
    return int(n), int(x), int(y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--heads", type=int, nargs=3, default=[9, 3, 64], metavar=("H", "K", "D"))
    parser.add_argument("--dtypes", nargs="+", help="default: float32 bfloat16; on CUDA bfloat16")
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=SHAPES, metavar="NxINPUT+OUTPUT")
    parser.add_argument("--weighting", default="uniform")
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each shape and type")
    parser.add_argument("--succ", type=int, metavar="TOKENS", help="instead: one input of so many tokens in 4 chunks")
    parser.add_argument("--out", type=Path, help="file for one JSON line a shape")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here")
    dtypes = arguments.dtypes or (["bfloat16"] if arguments.device == "cuda" else ["float32", "bfloat16"])
    setting = {"heads": arguments.heads, "weighting": arguments.weighting, "kernel": arguments.kernel}
    header = {**environment(arguments.device), **setting}
    print(json.dumps(header))
    if arguments.succ:
        for dtype in dtypes:
            print(json.dumps(measure_succ(arguments.succ, getattr(torch, dtype), arguments)), flush=True)
        return
    print(
        f"{'shape':>12} {'type':>9} {'tokens':>6} {'miso ms':>9} {'causal ms':>9}"
        f" {'/causal':>7} {'pairs':>7} {'mask':>7}"
        f" {'miso MiB':>8} {'causal':>8} {'pairs':>8} {'mask':>8} {'GFLOP/s':>8}"
    )
    records = []
    for shape in arguments.shapes:
        for dtype in dtypes:
            records.append(measure(shape, getattr(torch, dtype), arguments))
            print_row(records[-1])
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("".join(json.dumps({**header, **record}) + "\n" for record in records))


if __name__ == "__main__":
    main()
