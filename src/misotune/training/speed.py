"""How long a run will take: from a step that was measured here, or from an earlier run of the same work."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

from misotune.processor import bf16_instructions, processor_name
from misotune.runs import RunFolder
from misotune.training.batches import NOT_FOR_THE_MODEL
from misotune.training.watching.memory import peak_memory_gib

# An earlier run tells the speed of this one only where these are the same.
_SAME_WORK = ("model", "mode", "precision", "engine", "trains", "devices", "device_name", "row_capacity", "kernel")


def device_name() -> str:
    """Returns what trains here: the GPU's name, or the processor's with its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def emulates_bf16(precision: str) -> bool:
    """Returns whether what trains here computes a recipe's `train.precision` by emulation, which is slow."""
    if precision != "bf16":
        return False
    if torch.cuda.is_available():
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return bf16_instructions() == ""


def earlier_speed(runs_dir: Path, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the speed of the newest earlier run that did the same work, or None.

    Its first line is left out: it holds the time in which memory is first touched and kernels are chosen.

    Args:
        runs_dir: Where run folders lie.
        plan: This run's plan.
    """
    found: list[tuple[float, str, float]] = []
    for path in runs_dir.glob("*/metrics.jsonl"):
        run = RunFolder(path.parent)
        try:
            before = run.read_plan()
            speeds = [json.loads(line)["total_tokens_per_s"] for line in path.read_text("utf-8").splitlines()][1:]
            when = path.stat().st_mtime
        except (OSError, ValueError, KeyError):  # an unfinished or foreign folder says nothing
            continue
        if speeds and all(before.get(key) == plan.get(key) for key in _SAME_WORK):
            found.append((when, run.name, median(speeds)))
    if not found:
        return None
    _, name, speed = max(found)
    return time_plan(plan, speed, f"the run {name}")


def time_plan(plan: Mapping[str, Any], tokens_per_s: float, source: str) -> dict[str, Any]:
    """Returns the plan's `time`.

    Args:
        plan: The plan, for its tokens.
        tokens_per_s: Tokens of inputs and outputs a second, over all devices.
        source: What was measured.
    """
    return {
        "tokens_per_s": round(tokens_per_s, 1),
        "hours": round(plan["tokens"] / tokens_per_s / 3600, 3),
        "from": source,
    }


def measure_row(
    model: Any,
    losses_of: Callable[[Any, Mapping[str, Any], torch.Tensor], torch.Tensor],
    batch: Mapping[str, Any],
    *,
    device: torch.device,
    autocast: torch.dtype | None,
) -> dict[str, Any]:
    """Returns how fast one device runs a row forward and backward, and the most memory that took.

    The row runs twice, and the second pass is timed. There is no optimizer: its state is not in the memory.

    Args:
        model: The model, with its weights, as it is trained.
        losses_of: Returns the losses of the trained tokens.
        batch: The row, an item of `MicroBatches`.
        device: Where it runs.
        autocast: The format of autocast; None: without.
    """
    model.to(device).train()
    row = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    arguments = {key: value for key, value in row.items() if key not in NOT_FOR_THE_MODEL}
    seconds = 0.0
    for _ in range(2):
        model.zero_grad()
        start = _now(device)
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            losses = losses_of(model, arguments, row["targets"])
        losses.sum().backward()
        seconds = _now(device) - start
    num_tokens = int(row["input_ids"].shape[1])
    return {
        "tokens": num_tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(num_tokens / seconds, 1),
        "peak_memory_gib": round(peak_memory_gib(), 3),
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
