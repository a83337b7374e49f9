"""The metrics of a run: one line for each logged step."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from misotune.storage import write_whole
from misotune.training.batches import MicroBatches
from misotune.training.watching.groups import GroupLoss, GroupLosses
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
        trained_tokens_per_s: Tokens in the loss, over all devices, per second since the last line, saves left out.
        total_tokens_per_s: All tokens of inputs and outputs, likewise.
        peak_memory_gib: Most memory held so far: of the device on CUDA, else of the process.
        elapsed_s: Seconds since training started, in this process.
        groups: Kind (`source`, `role`, `inputs`) -> group -> its part of the loss; without the kinds of which all
            samples belong to one group.
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
    groups: dict[str, dict[str, GroupLoss]] = field(default_factory=dict)


class MetricsWriter(TrainerCallback):
    """Appends a line to `metrics.jsonl` at every log, and hands it on.

    Args:
        path: `metrics.jsonl`.
        micro_batches: For the tokens of each step.
        groups: The losses by group, summed since the last line.
        on_metrics: Called with every line, on the main rank.
    """

    def __init__(
        self,
        path: Path,
        micro_batches: MicroBatches,
        groups: GroupLosses,
        on_metrics: Callable[[StepMetrics], None] | None,
    ) -> None:
        self.path = path
        self.micro_batches = micro_batches
        self.groups = groups
        self.on_metrics = on_metrics
        self._started = self._last_time = time.monotonic()
        self._last_step = 0
        self._paused: float | None = None
        self._step_ended = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clocks; a resumed run drops the lines that it will write again."""
        self._started = self._last_time = time.monotonic()
        self._paused = self._last_time
        self._last_step = state.global_step
        if state.is_world_process_zero and self.path.is_file():
            drop_lines_after(self.path, state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the time of a save out of the speed of training."""
        if self._paused is not None:
            self._last_time += time.monotonic() - self._paused
            self._paused = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called before a save, if there is one."""
        self._step_ended = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called within a save: it began when the step ended, and it ends when the next one begins."""
        self._paused = max(self._step_ended, self._last_time)

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
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(metrics), ensure_ascii=False) + "\n")
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
            groups=self.groups.take(),
        )


def drop_lines_after(path: Path, step: int) -> None:
    """Drops the lines of later steps, and one that was cut off when its process was killed."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            is_kept = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            continue
        if is_kept:
            kept.append(line)
    write_whole(path, "".join(f"{line}\n" for line in kept).encode())
