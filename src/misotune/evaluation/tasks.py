"""The tasks that `misotune eval` knows, and where their prompts come from."""

import difflib
import importlib.resources
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from misotune.data.hub import read_hub_rows
from misotune.errors import DataError, UsageError
from misotune.evaluation.constrained import ConstrainedPrompt, prompts_from_rows, read_jsonl
from misotune.evaluation.flatten import flatten, special_cases
from misotune.evaluation.ifeval import VerifierScoring
from misotune.evaluation.task import Task
from misotune.verifiers import drawn_constraints, ensure_verifiers

if TYPE_CHECKING:
    from misotune.evaluation.complexbench.instances import Language
    from misotune.evaluation.complexbench.judge import JudgeOptions
    from misotune.evaluation.context.model_tokens import ModelTokens

IFEVAL_HUB_ID = "google/IFEval"
# 1280 is lm-eval's limit for IFEval; the starter split asks for short texts.
_IFEVAL_MAX_NEW_TOKENS = 1280
_STARTER_MAX_NEW_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleGrid:
    """The documents of the needle test; see `load_needle`."""

    num_lengths: int = 8
    num_depths: int = 11
    min_length: int = 200
    max_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What the user says about tasks.

    Attributes:
        data: The prompts' file or folder; None for the hub's copy, or where a task brings its own.
        limit: Take only the first so many prompts (of IFEval, before they are flattened); None for all.
        offline: Do not use the network.
        max_new_tokens: The longest response; None for the task's own.
        judge: Who judges ComplexBench.
        language: ComplexBench's, `zh` or `en`.
        tokens: How the model counts tokens, for the needle test.
        needle: Its documents.
    """

    data: Path | None = None
    limit: int | None = None
    offline: bool = False
    max_new_tokens: int | None = None
    judge: "JudgeOptions | None" = None
    language: "Language" = "zh"
    tokens: "ModelTokens | None" = None
    needle: NeedleGrid = field(default_factory=NeedleGrid)


@dataclass(frozen=True, slots=True)
class TaskKind:
    """How a task is made.

    Attributes:
        load: Makes it, given its name and what the user says.
        takes_data: It is made of `--data`; False: its prompts are part of misotune.
        needed_data: What `--data` must name; None: without it the prompts are the hub's, or misotune's.
    """

    load: Callable[[str, TaskOptions], Task]
    takes_data: bool = True
    needed_data: str | None = None


def check_task_name(name: str) -> None:
    """Raises UsageError with the nearest and all allowed names when there is no task `name`."""
    if name in TASKS:
        return
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown task {name!r}; {hint}allowed: {', '.join(TASKS)}")


def load_task(name: str, options: TaskOptions | None = None) -> Task:
    """Returns the task with its prompts, ready to be scored.

    Args:
        name: One of `TASKS`.
        options: What the user says about it; None: nothing.

    Raises:
        UsageError: There is no such task, it takes no `data`, or lacks what it needs.
        DataError: A row is wrong; names file and line.
        RunError: The hub or the data of a verifier cannot be reached; names the cure.
    """
    check_task_name(name)
    options = options or TaskOptions()
    kind = TASKS[name]
    if options.data is not None and not kind.takes_data:
        raise UsageError(f"task {name!r} has its own prompts; leave out --data")
    if options.data is None and kind.needed_data is not None:
        raise UsageError(f"task {name!r} needs --data: {kind.needed_data}")
    return kind.load(name, options)


def _ifeval(name: str, options: TaskOptions) -> Task:
    source, rows = _ifeval_rows(name, options)
    prompts = prompts_from_rows(rows)
    return _verified(name, source, prompts[: options.limit], prompts, _IFEVAL_MAX_NEW_TOKENS, options)


def _ifeval_flatten(name: str, options: TaskOptions) -> Task:
    source, rows = _ifeval_rows(name, options)
    whole = prompts_from_rows(rows)
    taken = whole[: options.limit]
    task = _verified(name, source, flatten(taken), flatten(whole), _IFEVAL_MAX_NEW_TOKENS, options)
    special = special_cases(taken)
    if not special:
        return task
    note = f"flattened with a note in docs/evaluation.md: keys {', '.join(special)}"
    return replace(task, notes=(*task.notes, note))


def _starter(name: str, options: TaskOptions) -> Task:
    prompts = prompts_from_rows(_starter_rows())
    return _verified(name, "misotune starter", prompts[: options.limit], prompts, _STARTER_MAX_NEW_TOKENS, options)


def _verified(
    name: str,
    source: str,
    prompts: tuple[ConstrainedPrompt, ...],
    all_prompts: tuple[ConstrainedPrompt, ...],
    max_new_tokens: int,
    options: TaskOptions,
) -> Task:
    """Returns a task whose constraints programs verify."""
    ensure_verifiers(prompts, offline=options.offline)
    notes = tuple(
        f"key {p.key}: the verifier of {p.instruction_id_list[index]} draws what its arguments do not state "
        "at random (seeded, so the verdict repeats)"
        for p in prompts
        for index in drawn_constraints(p)
    )
    return Task(name, source, prompts, all_prompts, max_new_tokens, VerifierScoring(), notes)


def _ifeval_rows(name: str, options: TaskOptions) -> tuple[str, Iterable[tuple[str, Mapping[str, Any]]]]:
    """Returns what the rows come from, and (where, row) of each."""
    if options.data is not None:
        return str(options.data), read_jsonl(options.data)
    rows = read_hub_rows(IFEVAL_HUB_ID, "train", f"misotune eval {name} --data input_data.jsonl")
    return IFEVAL_HUB_ID, ((row.where, row.values) for row in rows)


def _starter_rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
    file = importlib.resources.files("misotune.data") / "starter" / "eval.jsonl"
    if not file.is_file():
        raise DataError("the starter set is missing from this installation; install misotune again")
    with importlib.resources.as_file(file) as path:
        yield from read_jsonl(path)


def _complexbench(name: str, options: TaskOptions) -> Task:
    from misotune.evaluation.complexbench.scoring import load_complexbench

    if options.judge is None:
        raise UsageError(f"task {name!r} needs a judge: --judge-endpoint URL and --judge-model NAME")
    assert options.data is not None
    return load_complexbench(options.data, judge=options.judge, language=options.language, limit=options.limit)


def _needle(name: str, options: TaskOptions) -> Task:
    from misotune.evaluation.context.needle import MAX_NEW_TOKENS, load_needle

    if options.tokens is None:
        raise UsageError(
            f"task {name!r} counts lengths in the model's own tokens: with --endpoint or --responses name the "
            "tokenizer, a folder or a hub id, with --tokenizer NAME"
        )
    assert options.data is not None
    grid = options.needle
    return load_needle(
        options.tokens,
        haystack=options.data,
        num_lengths=grid.num_lengths,
        num_depths=grid.num_depths,
        min_length=grid.min_length,
        max_length=grid.max_length,
        max_new_tokens=options.max_new_tokens or MAX_NEW_TOKENS,
        limit=options.limit,
    )


def _reading(name: str, options: TaskOptions) -> Task:
    from misotune.evaluation.context.reading import load_reading

    return load_reading(name, data=options.data, limit=options.limit)


TASKS: Mapping[str, TaskKind] = {
    "ifeval": TaskKind(_ifeval),
    "ifeval-flatten": TaskKind(_ifeval_flatten),
    "complexbench": TaskKind(
        _complexbench, needed_data="data_final.json of a clone of thu-coai/ComplexBench, or the clone"
    ),
    "needle": TaskKind(_needle, needed_data="the text to hide it in: .txt, a folder of them, or JSONL with text"),
    "squad": TaskKind(_reading),
    "squad_v2": TaskKind(_reading),
    "quac": TaskKind(_reading),
    "drop": TaskKind(_reading),
    "starter": TaskKind(_starter, takes_data=False),
}
