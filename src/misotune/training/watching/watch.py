"""All that watches a run and outlives its steps: metrics, losses by group, trackers, events, the report."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from misotune.report.page import write_report
from misotune.runs import RunFolder
from misotune.training.batches import MicroBatches
from misotune.training.ranks import launch
from misotune.training.watching.events import has_recorded_stop, record_event
from misotune.training.watching.groups import GroupLosses
from misotune.training.watching.metrics import MetricsWriter, StepMetrics
from misotune.training.watching.trackers import Tracker, numbers_of, open_trackers

REPORT_EVERY_S = 30.0
# On a run with many lines the report may take a second: it may not take more of the run than one part in this.
_REPORT_PART = 50
_NUMBER = re.compile(r"\d+")


class RunWatch:
    """Watches a run from before its model is loaded until its end, whatever the end is.

    A context manager: what ends the run is recorded, trackers are closed, and the report is written a last time.

    Args:
        run: The run folder, with recipe and plan in it.
        micro_batches: The run's micro-batches.
        recipe: The recipe as plain values.
        plan: The plan.
        trackers: Names of trackers.
        checkpoint: The folder `step-N` that the run goes on from; None: it begins.
        on_metrics: Called with every line of metrics.
        on_message: Called with a sentence that the user should see.

    Raises:
        RunError: A tracker cannot be opened.
    """

    def __init__(
        self,
        run: RunFolder,
        micro_batches: MicroBatches,
        *,
        recipe: Mapping[str, Any],
        plan: Mapping[str, Any],
        trackers: Sequence[str],
        checkpoint: Path | None = None,
        on_metrics: Callable[[StepMetrics], None] | None = None,
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        self._run = run
        self._on_metrics = on_metrics
        self._on_message = on_message
        self._trackers: dict[str, Tracker] = {}
        groups = GroupLosses(micro_batches, by_role=plan["mode"] == "flat")
        self.observers = [groups.observe]
        self.callbacks: list[TrainerCallback] = [MetricsWriter(run.metrics, micro_batches, groups, self._on_line)]
        if not launch.is_main_process():
            return
        first_step = int(_NUMBER.findall(checkpoint.name)[0]) if checkpoint else 0
        self._trackers = open_trackers(trackers, run, recipe, plan, first_step)
        self._report = _ReportWriter(run)
        self.callbacks.append(self._report)
        size = f"{plan['steps']:,} steps of {plan['samples_per_step']} samples on {plan['devices']} device(s)"
        if first_step:
            record_event(run, "resume", f"goes on after step {first_step:,} of {size}")
        else:
            record_event(run, "start", size)

    def __enter__(self) -> "RunWatch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Records the end, closes the trackers and writes the report; an error of theirs hides no other."""
        if not launch.is_main_process():
            return
        if error is None:
            record_event(self._run, "stop", f"finished: {self._run.final}")
        else:
            text = str(error).strip() or type(error).__name__
            if not has_recorded_stop(self._run):
                record_event(self._run, "stop", text.splitlines()[0])
        for name in list(self._trackers):
            self._ask(name, lambda tracker: tracker.close(int(error is not None)))
        self._report.write(is_running=False)

    def _on_line(self, metrics: StepMetrics) -> None:
        numbers = numbers_of(metrics)
        for name in list(self._trackers):
            self._ask(name, lambda tracker: tracker.log(numbers, metrics.step))
        if self._on_metrics:
            self._on_metrics(metrics)

    def _ask(self, name: str, do: Callable[[Tracker], None]) -> None:
        """Does something with a tracker; one that fails is left out from then on, and the run goes on."""
        try:
            do(self._trackers[name])
        except Exception as error:  # noqa: BLE001 - foreign code over a network: anything may come
            del self._trackers[name]
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            text = f"train.report_to: {name} failed and gets nothing more ({reason}); metrics.jsonl has everything"
            record_event(self._run, "warning", text)
            if self._on_message:
                self._on_message(text)


class _ReportWriter(TrainerCallback):
    """Rewrites `report.html` as the run goes on."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._next = 0.0
        self._failures: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """There is a report before the first step ends, which may take minutes."""
        self.write(is_running=True)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called behind the writer of metrics."""
        if time.monotonic() >= self._next:
            self.write(is_running=True)

    def write(self, *, is_running: bool) -> None:
        """Writes the report; an error is recorded once as a warning, for no run is lost for its report."""
        started = time.monotonic()
        try:
            write_report(self._run, is_running=is_running)
        except Exception as error:  # noqa: BLE001 - see above
            text = f"{self._run.report} could not be written: {type(error).__name__}: {error}"
            if text not in self._failures:
                self._failures.add(text)
                record_event(self._run, "warning", text)
        ended = time.monotonic()
        self._next = ended + max(REPORT_EVERY_S, (ended - started) * _REPORT_PART)
