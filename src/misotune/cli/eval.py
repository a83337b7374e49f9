"""`misotune eval`: scores a model, or responses made elsewhere, on tasks with verifiable constraints."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from misotune.errors import UsageError
from misotune.runs import newest_finished_run

if TYPE_CHECKING:
    from misotune.evaluation.generation import GenerationProgress, OnProgress
    from misotune.evaluation.models import ModelSource
    from misotune.evaluation.scoring import Scores
    from misotune.evaluation.tasks import Task

_NO_FLATTEN = "IFEval-Flatten is not part of this version of misotune: it was not scored; IFEval itself was"
_PLAIN_STEP_SHARE = 0.1
_PLAIN_STEP_S = 30.0


_Tasks = Annotated[list[str], typer.Argument(metavar="TASK...", help="ifeval, starter.", show_default=False)]
_Model = Annotated[
    str | None,
    typer.Option(metavar="M", help="A run, a folder with a model, or a hub id. (default: the newest finished run)"),
]
_Data = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="IFEval's prompts, .jsonl or .jsonl.gz. (default: the hub's)"),
]
_Responses = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Score these responses, no model: JSONL of prompt and response, or key and response.",
    ),
]
_Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")]
_Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Result folder. (default: RUN/scores/TASK or scores/MODEL/TASK)"),
]
_MaxNewTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Longest response in tokens. (default: ifeval 1280, starter 512)"),
]
_BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Prompts generated at once. (default: 32 on a GPU, 16 on a CPU)")
]
_Dtype = Annotated[
    str | None,
    typer.Option(help="auto (as the weights are stored), bfloat16 or float32. (default: auto)"),
]
_Flatten = Annotated[bool, typer.Option("--flatten", help="With ifeval: also score IFEval-Flatten.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")]
_Offline = Annotated[bool, typer.Option("--offline", help="Do not use the network.")]


def evaluate(
    tasks: _Tasks,
    model: _Model = None,
    data: _Data = None,
    responses: _Responses = None,
    limit: _Limit = None,
    out: _Out = None,
    max_new_tokens: _MaxNewTokens = None,
    batch_size: _BatchSize = None,
    dtype: _Dtype = None,
    flatten: _Flatten = False,
    as_json: _AsJson = False,
    offline: _Offline = False,
) -> None:
    """Score a model on tasks with verifiable constraints.

    Responses are greedy. Verdicts are strict and loose, per prompt (all constraints met) and per instruction.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads this once, when it is imported below
    _check_options(tasks, data, responses, flatten)
    if responses is not None:
        _refuse_with_responses(model=model, max_new_tokens=max_new_tokens, batch_size=batch_size, dtype=dtype)
    messages = Console(stderr=True, soft_wrap=True, highlight=False)
    notes = [_NO_FLATTEN] if flatten else []

    from misotune.evaluation.tasks import load_task

    source = None if responses is not None else _find_source(model, messages)
    ready = [load_task(name, data=data, limit=limit, offline=offline) for name in tasks]
    folders = [None if out is None else out if len(ready) == 1 else out / task.name for task in ready]
    if source is None:
        from misotune.evaluation.evaluate import evaluate_responses

        assert responses is not None
        found = [evaluate_responses(responses, ready[0], out=folders[0], offline=offline, notes=notes)]
    else:
        found = _evaluate_all(
            source, ready, folders, messages, max_new_tokens=max_new_tokens, batch_size=batch_size,
            dtype=dtype or "auto", notes=notes,
        )  # fmt: skip
    _show(found, source, as_json=as_json)


def _check_options(tasks: Sequence[str], data: Path | None, responses: Path | None, flatten: bool) -> None:
    from misotune.evaluation.tasks import check_task_name

    for name in tasks:
        check_task_name(name)
    if len(set(tasks)) < len(tasks):
        raise UsageError(f"a task is named twice: {' '.join(tasks)}")
    if flatten and "ifeval" not in tasks:
        raise UsageError("--flatten belongs to the task ifeval")
    for flag, value in (("--data", data), ("--responses", responses)):
        if value is not None and len(tasks) > 1:
            raise UsageError(f"{flag} belongs to one task; evaluate {' and '.join(tasks)} one by one")
        if value is not None and not value.is_file():
            raise UsageError(f"{flag} {value}: no such file")


def _refuse_with_responses(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--responses scores texts made elsewhere; leave out --{name.replace('_', '-')}")


def _find_source(model: str | None, messages: Console) -> "ModelSource":
    from misotune.evaluation.models import find_model, source_of_run

    if model is not None:
        return find_model(model)
    run = newest_finished_run()
    messages.print(f"evaluating the newest finished run: {run.path}")
    return source_of_run(run)


def _evaluate_all(
    source: "ModelSource",
    tasks: Sequence["Task"],
    folders: Sequence[Path | None],
    messages: Console,
    *,
    max_new_tokens: int | None,
    batch_size: int | None,
    dtype: str,
    notes: Sequence[str],
) -> list["Scores"]:
    from misotune.evaluation.results import check_result_folder

    for task, folder in zip(tasks, folders, strict=True):
        check_result_folder(folder or source.result_folder(task.name))
    messages.print(f"loading {source.path}")

    from misotune.evaluation.evaluate import evaluate_model
    from misotune.evaluation.generation import load_chat_model

    loaded = load_chat_model(source.path, dtype=dtype)
    found: list[Scores] = []
    for task, folder in zip(tasks, folders, strict=True):
        with generation_progress(task.name, len(task.prompts), messages) as on_progress:
            found.append(
                evaluate_model(
                    source,
                    task,
                    out=folder,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    on_progress=on_progress,
                    loaded=loaded,
                    notes=notes if task.name == "ifeval" else (),
                )
            )
    return found


@contextmanager
def generation_progress(task: str, num_prompts: int, console: Console) -> Iterator["OnProgress"]:
    """Yields a callback that draws a bar on a terminal and prints lines elsewhere."""
    if not console.is_terminal:
        yield _plain_progress(task, console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("prompts"),
        TextColumn("{task.fields[tokens]} tokens, {task.fields[speed]:.0f} a second"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(task, total=num_prompts, tokens=0, speed=0.0)
        yield lambda now: progress.update(
            bar, completed=now.num_done, tokens=now.num_new_tokens, speed=now.tokens_per_s
        )


def _plain_progress(task: str, console: Console) -> "OnProgress":
    """Returns a callback that prints a line for every tenth of the prompts, and after a long silence."""
    last_share, last_s = 0.0, time.monotonic()

    def report(now: "GenerationProgress") -> None:
        nonlocal last_share, last_s
        share = now.num_done / now.num_prompts
        is_step = share >= last_share + _PLAIN_STEP_SHARE or (share == 1.0 and last_share < 1.0)
        if is_step or time.monotonic() >= last_s + _PLAIN_STEP_S:
            console.print(
                f"{task}: {now.num_done} of {now.num_prompts} prompts, {now.num_new_tokens} new tokens, "
                f"{now.tokens_per_s:.0f} tokens/s, {now.elapsed_s:.0f} s"
            )
            last_share, last_s = share, time.monotonic()

    return report


def _show(found: Sequence["Scores"], source: "ModelSource | None", *, as_json: bool) -> None:
    if as_json:
        results = [{**scores.to_json(), "folder": str(scores.folder)} for scores in found]
        sys.stdout.write(json.dumps({"results": results}, indent=2, ensure_ascii=False) + "\n")
        return
    console = Console(soft_wrap=True, highlight=False)
    for table in (_figures_table(found), *map(_types_table, found)):
        table.box = box.SIMPLE_HEAD if console.is_terminal else None
        console.print(table)
        console.print()
    for scores in found:
        _show_account(scores, console.print)
    if source is not None and source.run is not None:
        console.print(f"next: misotune export {source.run.path}")


def _figures_table(found: Sequence["Scores"]) -> Table:
    table = Table(title=f"{found[0].model}, accuracy in percent", title_justify="left")
    table.add_column("task")
    for heading in ("prompts", "prompt strict", "instr. strict", "prompt loose", "instr. loose"):
        table.add_column(heading, justify="right")
    for scores in found:
        values = asdict(scores.figures).values()
        table.add_row(scores.task, str(scores.num_prompts), *(f"{100 * value:.2f}" for value in values))
    return table


def _types_table(scores: "Scores") -> Table:
    table = Table(title=f"{scores.task} by constraint type", title_justify="left")
    table.add_column("constraint type")
    for heading in ("number", "strict", "loose"):
        table.add_column(heading, justify="right")
    for name, score in scores.constraint_types.items():
        row = (str(score.num_instructions), f"{100 * score.strict:.1f}", f"{100 * score.loose:.1f}")
        table.add_row(name, *row)
    return table


def _show_account(scores: "Scores", print_line: Callable[[str], None]) -> None:
    for note in scores.notes:
        print_line(f"note: {note}")
    if scores.generation:
        settings, generation = scores.settings, scores.generation
        print_line(
            f"{scores.task}: {generation['num_new_tokens']} tokens in {generation['elapsed_s']:.0f} s on "
            f"{settings['device']} in {settings['dtype']}, batches of {settings['batch_size']}; "
            f"{generation['num_cut']} responses cut at {settings['max_new_tokens']} tokens"
        )
    print_line(f"{scores.task}: {scores.folder}/scores.json, {scores.folder}/samples.jsonl")
