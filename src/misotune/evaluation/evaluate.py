"""Evaluates a model, or responses made elsewhere, on one task: `misotune eval` as two functions."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from misotune.evaluation.models import SCORES_ROOT, ModelSource, find_model, label
from misotune.evaluation.prompts import prompts_sha256
from misotune.evaluation.responses import read_responses
from misotune.evaluation.results import check_result_folder, write_result
from misotune.evaluation.scoring import ScoredSample, Scores, figures_of, score_responses, scores_by_type
from misotune.evaluation.tasks import Task, load_task
from misotune.packages import installed_version
from misotune.verifiers import SEED

if TYPE_CHECKING:
    from misotune.evaluation.generation import ChatModel, OnProgress

_PACKAGES = ("misotune", "lm-eval", "nltk", "langdetect", "transformers", "torch", "peft")


def evaluate_model(
    model: "str | Path | ModelSource",
    task: str | Task,
    *,
    out: Path | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    dtype: str = "auto",
    offline: bool = False,
    on_progress: "OnProgress | None" = None,
    loaded: "ChatModel | None" = None,
    notes: Sequence[str] = (),
) -> Scores:
    """Returns the scores of a model on a task, and writes the result folder.

    Args:
        model: A run folder, a folder with a model, or a hub id.
        task: A task's name, or a task from `load_task`.
        out: The result folder; None for RUN/scores/TASK, or scores/MODEL/TASK where there is no run.
        limit: Only the first so many prompts, where `task` is a name; None for all.
        max_new_tokens: The longest response; None for the task's own.
        batch_size: Prompts generated at once; None for what suits the device.
        dtype: `auto`, `bfloat16` or `float32`.
        offline: Do not use the network.
        on_progress: Called while responses are generated.
        loaded: The model, where it is in memory already.
        notes: Kept with the scores.

    Raises:
        UsageError: A name or folder is wrong.
        RunError: The prompts, the verifiers or the model cannot be used.
    """
    source = model if isinstance(model, ModelSource) else find_model(str(model))
    task = load_task(task, limit=limit, offline=offline) if isinstance(task, str) else task
    folder = out or source.result_folder(task.name)
    check_result_folder(folder)

    from misotune.evaluation.generation import generate_responses, load_chat_model

    chat_model = loaded or load_chat_model(source.path, dtype=dtype)
    generated = generate_responses(
        chat_model,
        [prompt.prompt for prompt in task.prompts],
        max_new_tokens=max_new_tokens or task.max_new_tokens,
        batch_size=batch_size,
        on_progress=on_progress,
    )
    samples = score_responses(task.prompts, generated.responses)
    return _finish(
        task,
        source.name,
        folder,
        samples,
        settings=asdict(generated.settings),
        generation=asdict(generated.account),
        notes=notes,
    )


def evaluate_responses(
    responses: Path,
    task: str | Task,
    *,
    out: Path | None = None,
    offline: bool = False,
    notes: Sequence[str] = (),
) -> Scores:
    """Returns the scores of responses made elsewhere, and writes the result folder.

    Args:
        responses: JSONL (`.gz` too) of {prompt, response} or {key, response}.
        task: A task's name, or a task from `load_task`.
        out: The result folder; None for scores/FILE/TASK.
        offline: Do not use the network.
        notes: Kept with the scores.

    Raises:
        UsageError: A name or folder is wrong.
        RunError: The prompts, the verifiers or the responses cannot be used.
    """
    task = load_task(task, offline=offline) if isinstance(task, str) else task
    folder = out or SCORES_ROOT / label(responses.name.split(".")[0]) / task.name
    check_result_folder(folder)
    texts, found = read_responses(responses, task.prompts, task.all_prompts)
    samples = score_responses(task.prompts, texts)
    return _finish(
        task,
        str(responses),
        folder,
        samples,
        settings={"responses": str(responses)},
        generation={},
        notes=[*notes, *found],
    )


def _finish(
    task: Task,
    model: str,
    folder: Path,
    samples: Sequence[ScoredSample],
    *,
    settings: dict[str, Any],
    generation: dict[str, Any],
    notes: Sequence[str],
) -> Scores:
    limit = len(task.prompts) if len(task.prompts) < len(task.all_prompts) else None
    scores = Scores(
        task=task.name,
        model=model,
        source=task.source,
        prompts_sha256=prompts_sha256(task.prompts),
        num_prompts=len(samples),
        num_instructions=sum(len(sample.strict) for sample in samples),
        figures=figures_of(samples),
        constraint_types=scores_by_type(samples),
        settings={**settings, "limit": limit},
        generation=generation,
        seed=SEED,
        versions=_versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=(*task.notes, *notes),
        folder=folder,
    )
    write_result(folder, scores, samples)
    return scores


def _versions() -> dict[str, str]:
    return {package: installed_version(package) or "unknown" for package in _PACKAGES}
