"""`misotune inspect`: looks into a model, measures and draws."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from misotune.cli import completion
from misotune.cli.command import Command, Group
from misotune.cli.inspect_attention import attention
from misotune.cli.inspect_dependency import dependency
from misotune.cli.inspect_model import load_model
from misotune.cli.run_names import named_path
from misotune.errors import UsageError

if TYPE_CHECKING:
    from misotune.analysis.continuations import Continuation
    from misotune.analysis.study import DilutionStudy

_RESULTS_ROOT = Path("inspect")

app = typer.Typer(cls=Group, help="Look into a model: measure and draw.", no_args_is_help=True)


app.command("attention", cls=Command)(attention)
app.command("dependency", cls=Command)(dependency)


@app.command("dilution", cls=Command)
def dilution(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run (its name in runs/, or its folder), a folder with a model or adapter, or a hub id.",
            autocompletion=completion.runs,
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="A prepared dataset or its rows as JSONL. (default: the starter set)"),
    ] = None,
    max_inputs: Annotated[int, typer.Option(metavar="N", min=2, help="Largest number of inputs n.")] = 16,
    repeat: Annotated[bool, typer.Option("--repeat", help="A row's first input n times, not n of its inputs.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Rows to measure.")] = 4,
    max_length: Annotated[
        int,
        typer.Option(metavar="N", min=16, help="Cut outputs where the longest pair exceeds so many tokens."),
    ] = 1024,
    generate: Annotated[
        bool, typer.Option("--generate", help="Also let the model write, to see whether it is still fluent.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=4, help="With --generate: longest text in tokens.")
    ] = 64,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="auto (as the weights are stored), bfloat16 or float32. (default: float32 on a CPU, else auto)",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Result folder. (default: RUN/inspect/dilution or inspect/MODEL/dilution)"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, with every layer.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not use the network.")] = False,
) -> None:
    """Measure how the output's share of attention changes with the number of inputs.

    Under the weightings vanilla, uniform and fid, in every layer; with a picture.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads this once, when it is imported below

    from misotune.evaluation.models import find_model, label

    model = named_path(model)
    source = find_model(model)
    folder = out or (source.run.path / "inspect" if source.run else _RESULTS_ROOT / label(model)) / "dilution"
    messages = Console(stderr=True, soft_wrap=True, highlight=False)

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    from misotune.analysis.results import check_result_folder
    from misotune.analysis.study import DilutionSettings, study_dilution

    check_result_folder(folder)
    _check_data(data)
    messages.print(f"loading {source.path}", markup=False)
    loaded, tokenizer = load_model(source.path, dtype)
    settings = DilutionSettings(data, max_inputs, repeat, limit, max_length, generate, max_new_tokens)
    with _progress(messages) as (on_row, on_text):
        study = study_dilution(label(model), loaded, tokenizer, folder, settings, on_row=on_row, on_text=on_text)
    if as_json:
        content = {**study.result, "folder": str(folder)}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        _show(study, Console(soft_wrap=True, highlight=False))


def _check_data(data: Path | None) -> None:
    if data is not None and not data.exists():
        raise UsageError(f"--data {data}: no such file or folder; write a dataset: misotune prepare SOURCE --mode para")


@contextmanager
def _progress(console: Console) -> Iterator[tuple[Callable[[int, int], None], Callable[["Continuation"], None]]]:
    """Yields callbacks for rows and texts: a bar on a terminal, lines elsewhere."""

    def describe(text: "Continuation") -> str:
        return f"{text.row}, n = {text.num_inputs}, {text.weighting}: {text.num_tokens} tokens"

    if not console.is_terminal:
        yield (
            lambda done, total: console.print(f"measured: row {done} of {total}"),
            lambda text: console.print(f"written: {describe(text)}", markup=False),
        )
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("rows measured", total=None)
        yield (
            lambda done, total: progress.update(bar, completed=done, total=total),
            lambda text: progress.update(bar, description=f"written: {describe(text)}"),
        )


def _show(study: "DilutionStudy", console: Console) -> None:
    for table in (_shares_table(study), *([_fluency_table(study)] if study.fluency else [])):
        table.box = box.SIMPLE_HEAD if console.is_terminal else None
        console.print(table)
        console.print()
    files = sorted(path.name for path in study.folder.iterdir())
    console.print(f"every layer, and the picture: {study.folder}/{{{','.join(files)}}}", markup=False)


def _shares_table(study: "DilutionStudy") -> Table:
    found = study.dilution
    table = Table(title=f"the output's share of attention in percent: {escape(study.title)}", title_justify="left")
    table.add_column("n", justify="right")
    for name in found.shares:
        table.add_column(name, justify="right")
    means = [found.mean(name).tolist() for name in found.shares]
    for n, *values in zip(found.counts, *means, strict=True):
        table.add_row(str(n), *(f"{100 * value:.1f}" for value in values))
    return table


def _fluency_table(study: "DilutionStudy") -> Table:
    table = Table(title="texts: perplexity beside the row's first input alone", title_justify="left")
    for heading in ("n", "weighting", "perplexity", "repeated 4-grams, %", "tokens", "cut"):
        table.add_column(heading, justify="left" if heading == "weighting" else "right")
    for entry in study.fluency:
        table.add_row(
            str(entry.num_inputs or "-"),
            entry.weighting,
            f"{entry.perplexity:.2f}",
            f"{100 * entry.repeated_4grams:.1f}",
            f"{entry.num_tokens:.1f}",
            str(entry.num_cut),
        )
    return table
