"""The tasks that `misotune eval` knows, and where their prompts come from."""

import difflib
import importlib.resources
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import DataError, RunError, UsageError
from misotune.evaluation.prompts import ConstrainedPrompt, prompts_from_rows, read_jsonl
from misotune.verifiers import drawn_constraints, ensure_verifiers

IFEVAL_HUB_ID = "google/IFEval"


@dataclass(frozen=True, slots=True)
class TaskKind:
    """What is fixed about a task.

    Attributes:
        summary: One line for the help.
        max_new_tokens: The longest response, in tokens, unless asked otherwise.
    """

    summary: str
    max_new_tokens: int


# 1280 is lm-eval's limit for IFEval; the starter split asks for short texts.
TASKS: Mapping[str, TaskKind] = {
    "ifeval": TaskKind("IFEval, 541 prompts (--data FILE, else google/IFEval from the hub)", 1280),
    "starter": TaskKind("the embedded evaluation split, no download", 512),
}


@dataclass(frozen=True, slots=True)
class Task:
    """A task that is ready to be run: its prompts are read and every constraint can be verified.

    Attributes:
        source: The file or hub id that the prompts come from.
        prompts: The prompts to run: the first `limit` of `all_prompts`.
        all_prompts: Every prompt of the set; responses made elsewhere are matched against these.
        notes: What a reader of the scores must know.
    """

    name: str
    source: str
    prompts: tuple[ConstrainedPrompt, ...]
    all_prompts: tuple[ConstrainedPrompt, ...]
    max_new_tokens: int
    notes: tuple[str, ...] = ()


def check_task_name(name: str) -> None:
    """Raises UsageError with the nearest and all allowed names when there is no task `name`."""
    if name in TASKS:
        return
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown task {name!r}; {hint}allowed: {', '.join(TASKS)}")


def load_task(name: str, *, data: Path | None = None, limit: int | None = None, offline: bool = False) -> Task:
    """Returns the task with its prompts, ready to be verified.

    Args:
        name: `ifeval` or `starter`.
        data: A JSONL file (`.gz` too) with IFEval's rows; None for the hub's copy. Only for `ifeval`.
        limit: Take only the first so many prompts; None for all.
        offline: Do not use the network.

    Raises:
        UsageError: There is no such task, or it takes no `data`.
        DataError: A row is wrong; names file and line.
        RunError: The hub or the data of a verifier cannot be reached; names the cure.
    """
    check_task_name(name)
    if data is not None and name != "ifeval":
        raise UsageError(f"task {name!r} has its own prompts; --data belongs to ifeval")
    if name == "starter":
        source, rows = "misotune starter", _starter_rows()
    elif data is not None:
        source, rows = str(data), read_jsonl(data)
    else:
        source, rows = IFEVAL_HUB_ID, _hub_rows()
    all_prompts = prompts_from_rows(rows)
    prompts = all_prompts[:limit]
    ensure_verifiers(prompts, offline=offline)
    return Task(name, source, prompts, all_prompts, TASKS[name].max_new_tokens, _notes(prompts))


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
