"""Evaluates a model, or responses made elsewhere, on one task: `misotune eval` as two functions."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from misotune.evaluation.marking import SETTING, check_indicator, marked_prompts
from misotune.evaluation.models import SCORES_ROOT, ModelSource, find_model, label
from misotune.evaluation.responses import read_responses
from misotune.evaluation.results import check_result_folder, write_result
from misotune.evaluation.scores import Scores
from misotune.evaluation.task import Sample, Task, prompts_sha256
from misotune.evaluation.tasks import TaskOptions, load_task
from misotune.indicator import INDICATOR
from misotune.packages import installed_version
from misotune.verifiers import SEED

if TYPE_CHECKING:
    from misotune.evaluation.backends.base import Backend, OnProgress
    from misotune.evaluation.backends.chat_model import ChatModel

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
    backend: "Backend | None" = None,
    keep_responses: bool = False,
    notes: Sequence[str] = (),
    indicator: bool = False,
) -> Scores:
    """Returns the scores of a model on a task, and writes the result folder.

    Responses are kept beside the result folder as they come; an evaluation that was stopped, in whichever way,
    generates only what is missing.

    Args:
        model: A run folder, a folder with a model, or a hub id; with `backend`, the model's name there.
        task: A task's name, or a task from `load_task`.
        out: The result folder; None for RUN/scores/TASK, or scores/MODEL/TASK where there is no run.
        limit: Only the first so many prompts, where `task` is a name; None for all.
        max_new_tokens: The longest response; None for the task's own.
        batch_size: Prompts generated at once; None for 128. Not with `backend`.
        dtype: `auto`, `bfloat16` or `float32`. Not with `backend`.
        offline: Do not use the network.
        on_progress: Called while responses are generated.
        loaded: The model, where it is in memory already.
        backend: What answers; None for the model in this process.
        keep_responses: Leave the kept responses there after the result is written: for a caller with more tasks to
            evaluate, who calls `discard_responses` after the last.
        notes: Kept with the scores.
        indicator: Mark every prompt's last user turn with the context-dependency indicator.

    Raises:
        UsageError: A name or folder is wrong.
        RunError: The prompts, the verifiers or the model cannot be used.
    """
    source = model if isinstance(model, ModelSource) else _find_source(str(model), backend)
    task = load_task(task, TaskOptions(limit=limit, offline=offline)) if isinstance(task, str) else task
    folder = out or source.result_folder(task.name, SETTING if indicator else None)
    check_result_folder(folder)

    from misotune.evaluation.backends.base import generate_responses
    from misotune.evaluation.backends.response_cache import cache_path, discard_responses

    backend = backend or _hf_backend(loaded, source, dtype, batch_size)
    tokenizer = getattr(backend, "tokenizer", None)  # a server's model is not known here
    if indicator and tokenizer is not None:
        check_indicator(tokenizer, source.name)
    generated = generate_responses(
        backend,
        marked_prompts([prompt.messages for prompt in task.prompts], is_marked=indicator),
        max_new_tokens=max_new_tokens or task.max_new_tokens,
        cache=cache_path(folder),
        on_progress=on_progress,
    )
    samples = task.scoring.score(task.prompts, generated.responses)
    scores = _finish(
        task,
        source.name,
        folder,
        samples,
        settings={**generated.settings, **({SETTING: INDICATOR} if indicator else {}), **task.scoring.settings},
        generation=asdict(generated.account),
        notes=notes,
    )
    if not keep_responses:
        discard_responses(folder)
    return scores


def _find_source(model: str, backend: "Backend | None") -> ModelSource:
    """Returns what `model` stands for here; a backend knows itself what it calls by that name."""
    return find_model(model) if backend is None else ModelSource(model, model)


def _hf_backend(loaded: "ChatModel | None", source: ModelSource, dtype: str, batch_size: int | None) -> "Backend":
    from misotune.evaluation.backends.chat_model import load_chat_model
    from misotune.evaluation.backends.hf import HfBackend

    if loaded is None:
        loaded = load_chat_model(source.path, dtype=dtype, revision=source.revision, tokenizer=source.tokenizer)
    return HfBackend(loaded, batch_size)


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
    task = load_task(task, TaskOptions(offline=offline)) if isinstance(task, str) else task
    folder = out or SCORES_ROOT / label(responses.name.split(".")[0]) / task.name
    check_result_folder(folder)
    texts, found = read_responses(responses, task.prompts, task.all_prompts, task.response_fields)
    samples = task.scoring.score(task.prompts, texts)
    return _finish(
        task,
        str(responses),
        folder,
        samples,
        settings={"responses": str(responses), **task.scoring.settings},
        generation={},
        notes=[*notes, *found],
    )


def _finish(
    task: Task,
    model: str,
    folder: Path,
    samples: Sequence[Sample],
    *,
    settings: dict[str, Any],
    generation: dict[str, Any],
    notes: Sequence[str],
) -> Scores:
    limit = len(task.prompts) if len(task.prompts) < len(task.all_prompts) else None
    summary = task.scoring.summarize(samples)
    variant = list(_variant_words(settings))
    scores = Scores(
        task=task.name,
        model=model,
        source=task.source,
        prompts_sha256=prompts_sha256(task.prompts),
        num_prompts=len(samples),
        counts=summary.counts,
        figures=summary.figures,
        groups=summary.groups,
        settings={**settings, "limit": limit},
        generation=generation,
        seed=SEED,
        versions=_versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=(*task.notes, *notes, *variant, *summary.notes),
        folder=folder,
    )
    drawn = ", ".join([scores.model, *variant])
    draw = None if task.draw is None else functools.partial(task.draw, samples, drawn)
    write_result(folder, scores, samples, draw)
    return scores


def _variant_words(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yields in what the model or its prompts are not as they were trained or published."""
    if SETTING in settings:
        yield f"prompts with {settings[SETTING]}"
    if "steer" in settings:
        parts = [f"{what} {settings[f'steer_{what}']}" for what in ("layers", "heads") if f"steer_{what}" in settings]
        yield ", ".join([f"steered by {settings['steer']:g}", *parts])


def _versions() -> dict[str, str]:
    return {package: installed_version(package) or "unknown" for package in _PACKAGES}
