"""What `misotune eval` shows of scores: tables, what generation took, and where the files are."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from misotune.evaluation.scores import Scores

# Figures are named as in the published tables; others by their own names.
_HEADINGS = {
    "prompt_level_strict_acc": "prompt strict",
    "inst_level_strict_acc": "instr. strict",
    "prompt_level_loose_acc": "prompt loose",
    "inst_level_loose_acc": "instr. loose",
}


def print_json(found: Sequence["Scores"]) -> None:
    """Writes all scores to standard output as one JSON object."""
    results = [{**scores.to_json(), "folder": str(scores.folder)} for scores in found]
    sys.stdout.write(json.dumps({"results": results}, indent=2, ensure_ascii=False) + "\n")


def print_tables(found: Sequence["Scores"]) -> None:
    """Prints a table for the tasks of the same figures, one for each kind of group, and what each task took."""
    console = Console(soft_wrap=True, highlight=False)
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


def _figures_table(found: Sequence["Scores"]) -> Table:
    table = Table(title=f"{found[0].model}, in percent", title_justify="left")
    table.add_column("task")
    for name in ("prompts", *found[0].figures):
        table.add_column(_HEADINGS.get(name, name), justify="right")
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
        table.add_column(_HEADINGS.get(name, name), justify="right")
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
    """Returns what generation took; a server says nothing of tokens."""
    took, kept = f"{generation['elapsed_s']:.0f} s", generation["num_kept"]
    if settings["backend"] == "endpoint":
        parts = [f"{took} at {settings['endpoint']}, {settings['concurrency']} requests at a time"]
    else:
        parts = [
            f"{generation['num_new_tokens']} tokens in {took} on {settings['device']} in {settings['dtype']}, "
            f"batches of {settings['batch_size']}",
            f"{generation['num_cut']} responses cut at {settings['max_new_tokens']} tokens",
        ]
    return "; ".join([*parts, f"{kept} responses kept from the interrupted evaluation"] if kept else parts)
