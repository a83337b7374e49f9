"""A task of lm-eval, scored with `misotune eval`'s model handling and into its result folder."""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import handle_non_serializable

from misotune.errors import MisotuneError, RunError, UsageError
from misotune.evaluation.backends.response_cache import ResponseCache, cache_path, discard_responses
from misotune.evaluation.harness.figures import figures_of, metrics_of
from misotune.evaluation.harness.loading import HarnessTask, load_harness_task
from misotune.evaluation.harness.options import HarnessOptions
from misotune.evaluation.harness.quiet import quiet
from misotune.evaluation.harness.rows import HarnessPrompt, rows_of
from misotune.evaluation.harness.served_lm import ServedLM, account_of
from misotune.evaluation.models import ModelSource
from misotune.evaluation.results import check_result_folder, write_result
from misotune.evaluation.scores import Scores
from misotune.evaluation.task import Sample, prompts_sha256
from misotune.packages import installed_version

if TYPE_CHECKING:
    from misotune.evaluation.backends.base import Backend, OnProgress
    from misotune.evaluation.backends.chat_model import ChatModel

LM_EVAL_FILE = "lm_eval.json"
# lm-eval's own, so that its examples are those of everybody's figures.
_SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}
_PACKAGES = ("misotune", "lm-eval", "transformers", "torch", "peft", "datasets")


def evaluate_harness(
    task: str | HarnessTask,
    source: ModelSource,
    options: HarnessOptions,
    *,
    out: Path,
    chat_model: "ChatModel | None" = None,
    server: "Backend | None" = None,
    on_progress: "OnProgress | None" = None,
    keep_responses: bool = False,
    notes: Sequence[str] = (),
) -> Scores:
    """Returns the scores of a model on a task of lm-eval, and writes the result folder.

    Answers are kept beside the result folder as they come, as `evaluate_model` does it. lm-eval's own results lie
    whole in the folder's `lm_eval.json`.

    Args:
        task: The name of a task, group or tag, or what `load_harness_task` returned for these options.
        source: The model, as it was named.
        options: What the user says about the task.
        out: The result folder.
        chat_model: The model in this process; or else `server`.
        server: What generates the responses instead; tasks that compare probabilities are refused.
        on_progress: Called with every answer.
        keep_responses: Leave the kept answers there after the result is written.
        notes: Kept with the scores.

    Raises:
        UsageError: The task, its options or the folder are wrong.
        RunError: The data cannot be loaded, the model cannot answer, or the result cannot be written.
    """
    if (chat_model is None) == (server is None):
        raise UsageError("a task of lm-eval is answered by a chat model or by a server, one of them")
    check_result_folder(out)
    if isinstance(task, str):
        task = load_harness_task(task, options, is_served=server is not None)
    with _model(chat_model, server, cache_path(out), options, on_progress) as lm:
        results = _run(task, lm, options)
    scores, samples = _scores(task, source, options, lm, results, notes)
    scores = replace(scores, folder=out)
    write_result(out, scores, samples, functools.partial(_write_whole, results))
    if not keep_responses:
        discard_responses(out)
    return scores


@contextlib.contextmanager
def _model(
    chat_model: "ChatModel | None",
    server: "Backend | None",
    cache: Path,
    options: HarnessOptions,
    on_progress: "OnProgress | None",
) -> Iterator[Any]:
    """Yields lm-eval's model over ours."""
    if server is not None:
        yield ServedLM(server, cache, on_progress)
        return
    from misotune.evaluation.harness.chat_lm import ChatLM

    assert chat_model is not None
    with ResponseCache(cache) as kept, quiet():
        yield ChatLM(chat_model, kept, batch_size=options.batch_size, on_progress=on_progress)


def _run(task: HarnessTask, lm: Any, options: HarnessOptions) -> dict[str, Any]:
    """Returns lm-eval's results, its samples included."""
    whole = [task.group] if task.group is not None else list(task.tasks.values())
    longest = options.max_new_tokens
    simple_evaluate: Any = lm_eval.simple_evaluate  # its decorator hides its type
    try:
        with quiet():
            return simple_evaluate(
                lm,
                tasks=whole,
                task_manager=task.manager,
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
                gen_kwargs=None if longest is None else {"max_gen_toks": longest},
                # `misotune compare` has its own intervals; lm-eval's bootstrap prints, and starts processes.
                bootstrap_iters=0,
                confirm_run_unsafe_code=options.run_model_code,
                **_SEEDS,
            )
    except MisotuneError:
        raise
    except Exception as error:  # of the task's own code, on what the model or the data say
        raise RunError(
            f"task {task.name!r}: lm-eval cannot go on ({type(error).__name__}: {error}); the answers so far are kept, "
            "and the same command goes on from there"
        ) from error


def _scores(
    task: HarnessTask,
    source: ModelSource,
    options: HarnessOptions,
    lm: Any,
    results: Mapping[str, Any],
    notes: Sequence[str],
) -> tuple[Scores, list[Sample]]:
    metrics = {name: metrics_of(name, results) for name in task.tasks}
    rows: list[tuple[HarnessPrompt, Sample]] = []
    for name in task.tasks:
        rows += rows_of(name, results["samples"][name], metrics[name], lm.turns, is_part=not task.is_single)
    figures = figures_of(task.name, metrics, results)
    if not figures.shares:
        told = "; ".join(figures.notes)
        raise RunError(f"task {task.name!r} has no figure that is a share, and misotune eval shows shares: {told}")
    shots = {name: results["n-shot"][name] for name in task.tasks}
    scores = Scores(
        task=task.name,
        model=source.name,
        source=task.source,
        prompts_sha256=prompts_sha256([prompt for prompt, _ in rows]),
        num_prompts=len(rows),
        counts={} if task.is_single else {"subtasks": len(task.tasks)},
        figures=figures.shares,
        groups={"subtask": figures.parts} if figures.parts else {},
        settings={
            **lm.settings(),
            "harness": "lm-eval",
            "task_versions": {name: results["versions"][name] for name in task.tasks},
            "num_fewshot": next(iter(shots.values())) if len(set(shots.values())) == 1 else shots,
            "max_new_tokens": _longest(task),
            "limit": options.limit,
        },
        generation=account_of(lm),
        seed=_SEEDS["fewshot_random_seed"],
        versions={package: installed_version(package) or "unknown" for package in _PACKAGES},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=(*task.notes, *notes, *lm.notes(), *_shot_notes(shots, options.num_fewshot), *figures.notes),
    )
    return scores, [sample for _, sample in rows]


def _longest(task: HarnessTask) -> int | None:
    """Returns the longest response that a task asks for; None: it asks for none."""
    kwargs = [t.get_config("generation_kwargs") or {} for t in task.tasks.values() if t.OUTPUT_TYPE == "generate_until"]
    return max((int(normalize_gen_kwargs(entry).get("max_gen_toks", 0)) for entry in kwargs), default=None)


def _shot_notes(shots: Mapping[str, int], asked: int | None) -> list[str]:
    fixed = [name for name, number in shots.items() if asked is not None and number != asked]
    return (
        [f"{', '.join(fixed)}: asked without examples whatever --num-fewshot says, as the task has it"] if fixed else []
    )


def _write_whole(results: Mapping[str, Any], folder: Path) -> None:
    """Writes lm-eval's own results but for the samples, which `samples.jsonl` has."""
    whole = {name: value for name, value in results.items() if name != "samples"}
    text = json.dumps(whole, indent=2, ensure_ascii=False, default=handle_non_serializable)
    (folder / LM_EVAL_FILE).write_text(text + "\n", encoding="utf-8")
