"""The tasks that `misotune eval` knows, and where their prompts come from."""

import difflib
import importlib.resources
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from misotune.errors import DataError, RunError, UsageError
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


@dataclass(frozen=True, slots=True)
class TaskKind:
    """What is fixed about a task.

    Attributes:
        summary: One line for the help.
        max_new_tokens: The longest response, in tokens, unless asked otherwise.
        data: Whether `--data` is `required`, `optional` (else the hub's), or there is `none`.
    """

    summary: str
    max_new_tokens: int
    data: Literal["required", "optional", "none"] = "optional"


# 1280 is lm-eval's limit for IFEval; the starter split asks for short texts.
TASKS: Mapping[str, TaskKind] = {
    "ifeval": TaskKind("IFEval, 541 prompts", 1280),
    "ifeval-flatten": TaskKind("IFEval with one constraint a prompt, 834 prompts", 1280),
    "complexbench": TaskKind("ComplexBench, 1,150 instructions; a judge scores", 2048, data="required"),
    "needle": TaskKind("a sentence hidden in a long text", 100, data="required"),
    "squad": TaskKind("SQuAD 1.1: questions about a text", 100),
    "squad_v2": TaskKind("SQuAD 2.0, those that the text answers", 100),
    "quac": TaskKind("QuAC, each dialogue's first question", 100),
    "drop": TaskKind("DROP: numbers, dates and spans", 100),
    "starter": TaskKind("the embedded evaluation split, no download", 512, data="none"),
}


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
    if options.data is not None and kind.data == "none":
        raise UsageError(f"task {name!r} has its own prompts; leave out --data")
    if options.data is None and kind.data == "required":
        raise UsageError(f"task {name!r} needs --data: {_NEEDED_DATA[name]}")
    if name == "complexbench":
        return _complexbench(options)
    if name == "needle":
        return _needle(options)
    if name in ("ifeval", "ifeval-flatten", "starter"):
        return _verified(name, options)

    from misotune.evaluation.context.reading import load_reading

    return load_reading(name, data=options.data, limit=options.limit)


_NEEDED_DATA = {
    "complexbench": "data_final.json of a clone of thu-coai/ComplexBench, or the clone",
    "needle": "the text to hide it in: .txt, a folder of them, or JSONL with text",
}


def _verified(name: str, options: TaskOptions) -> Task:
    """Returns a task whose constraints programs verify."""
    if name == "starter":
        source, rows = "misotune starter", _starter_rows()
    elif options.data is not None:
        source, rows = str(options.data), read_jsonl(options.data)
    else:
        source, rows = IFEVAL_HUB_ID, _hub_rows()
    all_prompts = prompts_from_rows(rows)
    prompts = all_prompts[: options.limit]
    special: dict[str, str] = {}
    if name == "ifeval-flatten":
        flat, all_prompts = flatten(prompts), flatten(all_prompts)
        prompts, special = flat, special_cases(prompts)
    ensure_verifiers(prompts, offline=options.offline)
    notes = _notes(prompts)
    if special:
        notes = (*notes, f"flattened with a note in docs/evaluation.md: keys {', '.join(special)}")
    return Task(name, source, prompts, all_prompts, TASKS[name].max_new_tokens, VerifierScoring(), notes)


def _complexbench(options: TaskOptions) -> Task:
    from misotune.evaluation.complexbench.scoring import load_complexbench

    if options.judge is None:
        raise UsageError("task 'complexbench' needs a judge: --judge-endpoint URL and --judge-model NAME")
    assert options.data is not None
    return load_complexbench(options.data, judge=options.judge, language=options.language, limit=options.limit)


def _needle(options: TaskOptions) -> Task:
    from misotune.evaluation.context.needle import load_needle

    if options.tokens is None:
        raise UsageError(
            "task 'needle' counts lengths in the model's own tokens: evaluate a run, a folder or a hub id, without "
            "--endpoint and --responses"
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
        max_new_tokens=options.max_new_tokens or TASKS["needle"].max_new_tokens,
        limit=options.limit,
    )


def _notes(prompts: tuple[ConstrainedPrompt, ...]) -> tuple[str, ...]:
    return tuple(
        f"key {p.key}: the verifier of {p.instruction_id_list[index]} draws what its arguments do not state "
        "at random (seeded, so the verdict repeats)"
        for p in prompts
        for index in drawn_constraints(p)
    )


def _starter_rows() -> Iterable[tuple[str, Mapping[str, Any]]]:
    file = importlib.resources.files("misotune.data") / "starter" / "eval.jsonl"
    if not file.is_file():
        raise DataError("the starter set is missing from this installation; install misotune again")
    with importlib.resources.as_file(file) as path:
        yield from read_jsonl(path)


def _hub_rows() -> Iterable[tuple[str, Mapping[str, Any]]]:
    import datasets

    try:
        rows = datasets.load_dataset(IFEVAL_HUB_ID, split="train")
    except (OSError, ValueError, RuntimeError) as error:  # as the hub's and the HTTP client's errors are
        raise RunError(_hub_message(error)) from error
    for number, row in enumerate(rows, start=1):
        yield f"{IFEVAL_HUB_ID} row {number}", row  # pyright: ignore[reportReturnType]


def _hub_message(error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    cure = "give IFEval's input_data.jsonl with --data FILE"
    return f"{IFEVAL_HUB_ID} cannot be loaded from the hub ({reason}); {cure}"
