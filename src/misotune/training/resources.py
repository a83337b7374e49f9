"""What a run needs of memory and disk, found before a weight is loaded, and what is said when it does not suffice."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from misotune.attention import ATTENTION_NAME, register
from misotune.errors import RunError
from misotune.training.batches import MicroBatches
from misotune.training.cross_entropy import Kind
from misotune.training.disk import checkpoint_bytes, disk_needed, final_bytes, in_gib
from misotune.training.engine import Engine
from misotune.training.memory_estimate import Sharing, estimate_memory
from misotune.training.memory_trace import Traced, UntraceableError, trace_pass
from misotune.training.model import AdapterSettings, add_adapter, checkpoint_activations

# A second row is traced when it looks heavier than the longest by more than this.
_WORTH_A_TRACE = 1.01


@dataclass(frozen=True, slots=True)
class RowSize:
    """A row of the run: where it is, and what makes it heavy."""

    index: int
    step: int
    tokens: int
    trained_tokens: int


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """How the model will be built.

    Attributes:
        config: Its configuration.
        dtype: The format of its weights; `auto`: as they are stored.
        adapter: The adapter; None: all weights are trained.
        quantization: `none`, or the format of the frozen weights: `nf4`, `int8`.
        has_checkpointing: Whether activations are computed again.
        is_bf16: The recipe's precision.
        engine: What trains it.
        cross_entropy: How its losses are computed.
    """

    config: Any
    dtype: torch.dtype | str
    adapter: AdapterSettings | None
    quantization: str
    has_checkpointing: bool
    is_bf16: bool
    engine: Engine
    cross_entropy: Kind

    def build(self) -> Any:
        """Returns the model as it will be trained; on fake tensors it has no weights."""
        register()
        dtype = (self.config.dtype or torch.float32) if self.dtype == "auto" else self.dtype
        model: Any = AutoModelForCausalLM.from_config(self.config, dtype=dtype, attn_implementation=ATTENTION_NAME)
        model.config.use_cache = False
        if self.has_checkpointing:
            checkpoint_activations(model)
        return model if self.adapter is None else add_adapter(model, self.adapter)


def plan_resources(
    model: ModelPlan,
    micro_batches: MicroBatches,
    run_folder: Path,
    *,
    save_every_steps: int | None,
    keep_checkpoints: int,
    has_trial_save: bool,
) -> dict[str, Any]:
    """Returns the plan's `memory` and `disk`; `memory` says why where it cannot be known.

    Args:
        model: How the model will be built.
        micro_batches: The rows in order.
        run_folder: Where the run will be written.
        save_every_steps: Of the recipe, as the next two.
        keep_checkpoints: How many stay.
        has_trial_save: Whether one is written before the first step.
    """
    rows = list(_rows(micro_batches))
    plan: dict[str, Any] = {"first_row": rows[0].tokens}
    if model.quantization != "none":
        return {**plan, "memory": {"unknown": "quantised weights cannot be followed without loading them"}}
    try:
        row, traced = _heaviest(model, micro_batches, rows)
    except UntraceableError as error:
        return {**plan, "memory": {"unknown": f"this model cannot be followed without its weights ({error})"}}
    schedule, engine = micro_batches.schedule, model.engine
    zero = (engine.config or {}).get("zero_optimization", {})
    estimate = estimate_memory(
        traced,
        Sharing(schedule.num_devices, engine.stage, engine.offload, is_bf16=model.is_bf16, zero=zero),
        device=_device(),
        local_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", schedule.num_devices)),
        row={"step": row.step + 1, "index": row.index, "tokens": row.tokens, "trained_tokens": row.trained_tokens},
    )
    numbers, is_adapter = (traced.num_parameters, traced.num_trained), model.adapter is not None
    uses_deepspeed = engine.stage is not None
    disk = disk_needed(
        checkpoint_bytes(*numbers, is_bf16=model.is_bf16, uses_deepspeed=uses_deepspeed, is_adapter=is_adapter),
        final_bytes(*numbers, is_bf16=model.is_bf16, is_adapter=is_adapter),
        run_folder,
        num_steps=schedule.num_steps,
        save_every_steps=save_every_steps,
        keep_checkpoints=keep_checkpoints,
        has_trial_save=has_trial_save,
    )
    parameters = {"all": traced.num_parameters, "trained": traced.num_trained}
    return {**plan, "parameters": parameters, "memory": estimate.as_dict(), "disk": disk.as_dict()}


def require_disk(plan: dict[str, Any]) -> None:
    """Refuses a run whose checkpoints will not find room.

    Raises:
        RunError: With what is needed, what is free, and the keys that lower it.
    """
    disk = plan.get("disk")
    if disk is None or disk["fits"]:
        return
    raise RunError(
        f"the disk has {in_gib(disk['free'])} free and the run needs {in_gib(disk['most'])}: "
        f"{disk['kept']} checkpoints of {in_gib(disk['checkpoint'])}, one more while it is written, and a final model "
        f"of {in_gib(disk['final'])}; free some, lower train.keep_checkpoints, or set output.runs_dir to another disk"
    )


_CURES = {
    "weights": "train fewer weights at a time: lora, or deepspeed.stage=3",
    "gradients": "divide them by deepspeed.stage=2, or train an adapter (lora)",
    "optimizer": "divide it by deepspeed.stage=1 or more, move it by deepspeed.offload=optimizer, or train an adapter",
    "activations": "lower train.tokens_per_micro_batch, set data.max_sample_length, or set "
    "train.gradient_checkpointing=true",
    "logits": "set train.cross_entropy=chunked, or lower train.tokens_per_micro_batch",
    "process": "lower train.tokens_per_micro_batch, or start fewer processes on this machine",
}


def out_of_memory(error: BaseException, plan: dict[str, Any]) -> RunError:
    """Returns the error for a device that ran out of memory: what was planned, and what lowers the largest part.

    Args:
        error: What was raised.
        plan: The run's plan.
    """
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    memory = plan.get("memory", {})
    if "components" not in memory:
        return RunError(f"the device ran out of memory; {_CURES['activations']}: {said}")
    sizes: dict[str, int] = memory["components"]
    largest = max(sizes, key=sizes.__getitem__)
    limit = f", of {in_gib(memory['limit'])}" if memory["limit"] else ""
    return RunError(
        f"the device ran out of memory; planned were {in_gib(memory['total'])}{limit}, the most of it {largest} "
        f"({in_gib(sizes[largest])}): {_CURES[largest]}: {said}"
    )


def _rows(micro_batches: MicroBatches) -> Iterator[RowSize]:
    """Yields every row of the run but the empty ones."""
    schedule = micro_batches.schedule
    lengths, trained = schedule.lengths, micro_batches.samples.num_trained_tokens
    slots = schedule.accumulation * schedule.num_devices
    for step in range(schedule.num_steps):
        for slot, row in enumerate(schedule.step_rows(step)):
            if row:
                tokens, targets = sum(lengths[i] for _, i in row), sum(int(trained[i]) for _, i in row)
                yield RowSize(step * slots + slot, step, tokens, targets)


def _heaviest(model: ModelPlan, micro_batches: MicroBatches, rows: list[RowSize]) -> tuple[RowSize, Traced]:
    """Returns the row that needs the most memory, and its trace: the longest, or one with more trained tokens."""
    longest = max(rows, key=lambda row: (row.tokens, row.trained_tokens))
    traced = _trace(model, micro_batches, longest)
    by_token = (traced.most_activations - traced.logits_then) / longest.tokens
    by_target = traced.logits_then / max(longest.trained_tokens, 1)

    def weight(row: RowSize) -> float:
        return by_token * row.tokens + by_target * row.trained_tokens

    heaviest = max(rows, key=weight)
    if weight(heaviest) <= _WORTH_A_TRACE * weight(longest):
        return longest, traced
    other = _trace(model, micro_batches, heaviest)
    return (heaviest, other) if sum(other.peak.values()) > sum(traced.peak.values()) else (longest, traced)


def _trace(model: ModelPlan, micro_batches: MicroBatches, row: RowSize) -> Traced:
    text = model.config.get_text_config(decoder=True)
    has_autocast = model.is_bf16 and not model.engine.has_master_weights
    return trace_pass(
        model.build,
        micro_batches[row.index],
        device=_device(),
        autocast=torch.bfloat16 if has_autocast else None,
        cross_entropy=model.cross_entropy,
        # Stages 1 to 3 keep gradients elsewhere, and count them apart.
        keeps_gradients=micro_batches.schedule.accumulation > 1 and not model.engine.has_master_weights,
        windows={None, getattr(text, "sliding_window", None)},
    )


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
