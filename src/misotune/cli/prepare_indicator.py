"""`misotune prepare indicator`: a dataset with dependency scores -> the same, its context-dependent turns marked."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from misotune.cli.prepare_options import DATA_ROOT, JsonOption

if TYPE_CHECKING:
    from misotune.data.indicator import Marked


def indicator(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET", help="A dataset with scores, as misotune inspect dependency --write writes it."
        ),
    ],
    threshold: Annotated[
        float, typer.Option(metavar="SHARE", help="Turns whose response scores above it are marked, from 0 to 1.")
    ] = 0.6,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. (default: data/NAME-indicator)")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Mark the user turns whose responses depend on them, by an indicator behind the text."""
    from misotune.data.indicator import mark_dataset

    marked = mark_dataset(dataset, out or DATA_ROOT / f"{dataset.resolve().stem}-indicator", threshold)
    if not 0 < marked.num_marked < marked.num_turns:
        _warn(marked)
    if as_json:
        typer.echo(json.dumps(marked.to_json()))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(_table(marked, str(dataset)))
    console.print(f"{marked.num_rows:,} rows, in [bold]{escape(str(marked.out))}[/bold]")
    mode = "sft" if marked.mode == "flat" else marked.mode
    command = f"misotune train recipes/quickstart.yaml {shlex.quote(f'data.path={marked.out}')} miso.mode={mode}"
    console.print(f"next: [bold]{escape(command)}[/bold]")


def _warn(marked: "Marked") -> None:
    which = "every" if marked.num_marked else "no"
    scores = ", ".join(f"{share:.0%} {score:.3f}" for share, score in marked.quantiles.items())
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"warning: {which} turn is marked, so that the indicator tells the model nothing; choose another --threshold. "
        f"Quantiles of the scores: {scores or 'there is none'}",
        markup=False,
    )


def _table(marked: "Marked", name: str) -> Table:
    table = Table("what was marked", "", title=escape(f"{name}, marked above {marked.threshold:g}"))
    table.title_justify = "left"
    table.columns[1].justify = "right"
    table.add_row("rows", f"{marked.num_rows:,}")
    table.add_row("  with a marked turn", f"{marked.num_marked_rows:,}")
    table.add_row("user turns", f"{marked.num_turns:,}")
    if marked.num_scored < marked.num_turns:
        table.add_row("  without a score", f"{marked.num_turns - marked.num_scored:,}")
    table.add_row("  marked", f"{marked.num_marked:,}", style="bold")
    table.add_row("share marked", f"{marked.share:.1%}")
    return table
