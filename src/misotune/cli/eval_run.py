"""Asks a model the prompts of tasks, and then the model that a run started from: `misotune eval` at work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from misotune.cli.eval_model import LocalModel
from misotune.cli.eval_progress import generation_progress

if TYPE_CHECKING:
    from misotune.evaluation.backends.base import Backend
    from misotune.evaluation.harness.loading import HarnessTask
    from misotune.evaluation.harness.options import HarnessOptions
    from misotune.evaluation.models import ModelSource
    from misotune.evaluation.scores import Scores
    from misotune.evaluation.task import Task

    AnyTask = Task | HarnessTask


@dataclass(frozen=True, slots=True)
class Asking:
    """How tasks are asked.

    Attributes:
        messages: Where progress is shown.
        harness_options: What the user says about tasks of lm-eval.
        max_new_tokens: The longest response; None for the tasks' own.
        indicator: Mark every prompt's last user turn.
    """

    messages: Console
    harness_options: "HarnessOptions"
    max_new_tokens: int | None
    indicator: bool = False

    def score_all(
        self,
        source: "ModelSource",
        answering: "LocalModel | Backend",
        tasks: Sequence["AnyTask"],
        folders: Sequence[Path],
    ) -> list["Scores"]:
        """Returns the scores on all tasks; responses stay beside the results until the last is there."""
        return [self._score(source, answering, task, folder) for task, folder in zip(tasks, folders, strict=True)]

    def _score(
        self, source: "ModelSource", answering: "LocalModel | Backend", task: "AnyTask", folder: Path
    ) -> "Scores":
        from misotune.evaluation.evaluate import evaluate_model
        from misotune.evaluation.task import Task

        local = answering if isinstance(answering, LocalModel) else None
        server = None if isinstance(answering, LocalModel) else answering
        try:
            if isinstance(task, Task):
                with generation_progress(task.name, len(task.prompts), self.messages) as on_progress:
                    return evaluate_model(
                        source,
                        task,
                        out=folder,
                        max_new_tokens=self.max_new_tokens,
                        backend=server or (local and local.backend()),
                        keep_responses=True,
                        on_progress=on_progress,
                        indicator=self.indicator,
                    )

            from misotune.evaluation.harness.evaluate import evaluate_harness

            with generation_progress(task.name, None, self.messages) as on_progress:
                return evaluate_harness(
                    task,
                    source,
                    self.harness_options,
                    out=folder,
                    chat_model=local and local.chat_model(),
                    server=server,
                    on_progress=on_progress,
                    keep_responses=True,
                )
        except KeyboardInterrupt:
            self.messages.print(f"{task.name}: responses so far are kept; the same command goes on from there")
            raise


def score_base(
    asking: Asking,
    source: "ModelSource",
    base_source: "ModelSource",
    tasks: Sequence["AnyTask"],
    found: Sequence["Scores"],
    batch_size: int | None,
    num_processes: int | None,
) -> None:
    """Scores the model that a run started from on those tasks whose scores the run does not keep."""
    from misotune.evaluation.base_scores import base_dtype, kept_base

    run = source.run
    assert run is not None
    missing = [
        task
        for task, scores in zip(tasks, found, strict=True)
        if kept_base(run, scores.task, prompts_sha256=scores.prompts_sha256, settings=scores.settings) is None
    ]
    if not missing:
        return
    folders = [run.base_scores / task.name for task in missing]
    dtype = base_dtype(found[0].settings)
    with LocalModel(
        base_source, asking.messages, dtype=dtype, batch_size=batch_size, num_processes=num_processes
    ) as model:
        asking.score_all(base_source, model, missing, folders)
    discard(folders)


def discard(folders: Sequence[Path]) -> None:
    """Forgets the responses kept for result folders."""
    from misotune.evaluation.backends.response_cache import discard_responses

    for folder in folders:
        discard_responses(folder)
