"""Watching a run: metrics, the guard against non-finite numbers, and checkpoints that get their name last."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from misotune.errors import RunError
from misotune.training.batches import MicroBatches
from misotune.training.watching.memory import peak_memory_gib


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One line of `metrics.jsonl`.

    Attributes:
        step: Optimizer steps done.
        num_steps: Optimizer steps of the run.
        epoch: Passes over the data done.
        loss: Mean loss per trained token, or per instruction (`train.loss`), over the steps since the last line.
        learning_rate: At this step.
        grad_norm: Norm of the gradient before clipping.
        trained_tokens_per_s: Tokens in the loss, over all devices, per second since the last line.
        total_tokens_per_s: All tokens of inputs and outputs, likewise.
        peak_memory_gib: Most memory held so far: of the device on CUDA, else of the process.
        elapsed_s: Seconds since training started, in this process.
    """

    step: int
    num_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    trained_tokens_per_s: float
    total_tokens_per_s: float
    peak_memory_gib: float
    elapsed_s: float


class MetricsWriter(TrainerCallback):
    """Appends a line to `metrics.jsonl` at every log, hands it on, and stops at the first non-finite number.

    Args:
        path: `metrics.jsonl`.
        micro_batches: For the tokens of each step, and the rows to name.
        on_metrics: Called with every line.
    """

    def __init__(
        self, path: Path, micro_batches: MicroBatches, on_metrics: Callable[[StepMetrics], None] | None
    ) -> None:
        self.path = path
        self.micro_batches = micro_batches
        self.on_metrics = on_metrics
        self._started = self._last_time = time.monotonic()
        self._last_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clocks; a resumed run drops the lines that it will write again."""
        self._started = self._last_time = time.monotonic()
        self._last_step = state.global_step
        if state.is_world_process_zero and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the line of the steps since the last one."""
        if not logs or "loss" not in logs:
            return
        metrics = self._metrics(state, logs)
        if not (math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)):
            raise RunError(self._non_finite(metrics))
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(metrics)) + "\n")
            if self.on_metrics:
                self.on_metrics(metrics)

    def _metrics(self, state: TrainerState, logs: dict[str, float]) -> StepMetrics:
        counts = [self.micro_batches.count(step) for step in range(self._last_step, state.global_step)]
        now = time.monotonic()
        seconds = max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = state.global_step, now
        return StepMetrics(
            step=state.global_step,
            num_steps=state.max_steps,
            epoch=round(counts[-1].epoch, 4),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=float(logs.get("grad_norm", math.nan)),
            trained_tokens_per_s=round(sum(count.trained_tokens for count in counts) / seconds, 1),
            total_tokens_per_s=round(sum(count.tokens for count in counts) / seconds, 1),
            peak_memory_gib=round(peak_memory_gib(), 3),
            elapsed_s=round(now - self._started, 2),
        )

    def _non_finite(self, metrics: StepMetrics) -> str:
        ids = self.micro_batches.sample_ids(metrics.step - 1)
        rows = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        return (
            f"step {metrics.step}: loss {metrics.loss}, gradient norm {metrics.grad_norm}; its rows: {rows}. "
            "Checkpoints before it are whole; lower train.learning_rate or look at these rows"
        )
