"""What `misotune eval` shows of scores: tables, what generation took, and where the files are."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from misotune.report.figure_names import figure_heading

if TYPE_CHECKING:
    from misotune.evaluation.scores import Scores
    from misotune.report.against_base import AgainstBase


# Columns of a table in a file or pipe, where nothing limits them.
_FILE_WIDTH = 120


def print_json(found: Sequence["Scores"], against_base: Mapping[str, "AgainstBase"]) -> None:
    """Writes all scores to standard output as one JSON object; what training changed stands with its task."""
    results: list[dict[str, Any]] = []
    for scores in found:
        change = against_base.get(scores.task)
        told = {} if change is None else {"against_base": {"finding": change.finding(), **asdict(change)}}
        results.append({**scores.to_json(), "folder": str(scores.folder), **told})
    sys.stdout.write(json.dumps({"results": results}, indent=2, ensure_ascii=False) + "\n")


def print_tables(found: Sequence["Scores"], against_base: Mapping[str, "AgainstBase"]) -> None:
    """Prints a table for the tasks of the same figures, one for each kind of group, and what each task took.

    Args:
        found: The scores.
        against_base: What training changed, by task.
    """
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    alike: dict[tuple[str, ...], list[Scores]] = {}
    for scores in found:
        alike.setdefault(tuple(scores.figures), []).append(scores)
    tables = [_figures_table(group) for group in alike.values()]
    tables += [_group_table(scores, kind) for scores in found for kind in scores.groups]
    for table in tables:
        table.box = box.SIMPLE_HEAD if console.is_terminal else None
        console.print(table)
        console.print()
    for scores in found:
        _print_account(scores, console.print)
        if change := against_base.get(scores.task):
            console.print(f"{scores.task}: against its base model, {change.finding()}", style="bold", markup=False)


def _figures_table(found: Sequence["Scores"]) -> Table:
    table = Table(title=f"{found[0].model}, in percent", title_justify="left")
    table.add_column("task", overflow="fold")
    for name in ("prompts", *found[0].figures):
        table.add_column(figure_heading(name), justify="right")
    for scores in found:
        table.add_row(
            scores.task, f"{scores.num_prompts:,}", *(f"{100 * value:.2f}" for value in scores.figures.values())
        )
    return table


def _group_table(scores: "Scores", kind: str) -> Table:
    groups = scores.groups[kind]
    table = Table(title=f"{scores.task} by {kind}", title_justify="left")
    table.add_column(kind)
    names = list(next(iter(groups.values())))
    for name in names:
        table.add_column(figure_heading(name), justify="right")
    for label, values in groups.items():
        cells = (f"{int(values[name]):,}" if name == "number" else f"{100 * values[name]:.1f}" for name in names)
        table.add_row(label, *cells)
    return table


def _print_account(scores: "Scores", print_line: Callable[[str], None]) -> None:
    for note in scores.notes:
        print_line(f"note: {note}")
    if scores.generation:
        print_line(f"{scores.task}: {_account(scores.settings, scores.generation)}")
    print_line(f"{scores.task}: {scores.folder}/scores.json, {scores.folder}/samples.jsonl")


def _account(settings: dict[str, Any], generation: dict[str, Any]) -> str:
    """Returns what generation took; a server may say nothing of tokens."""
    num_tokens, num_cut, num_kept = (generation[name] for name in ("num_new_tokens", "num_cut", "num_kept"))
    took = f"{generation['elapsed_s']:.0f} s"
    took = took if num_tokens is None else f"{num_tokens} tokens in {took}"
    if settings["backend"] == "endpoint":
        parts = [f"{took} at {settings['endpoint']}, {settings['concurrency']} requests at a time"]
    else:
        number = settings.get("num_processes", 1)
        on = settings["device"] if number == 1 else f"{number} x {settings['device']}"
        parts = [f"{took} on {on} in {settings['dtype']}, batches of {settings['batch_size']}"]
    if num_cut is not None:
        parts.append(f"{num_cut} responses cut at {settings['max_new_tokens']} tokens")
    if num_kept:
        parts.append(f"{num_kept} responses kept from the interrupted evaluation")
    return "; ".join(parts)
