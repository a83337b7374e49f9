"""`misotune prepare`: source rows -> multi-input dataset."""

import difflib
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from misotune.errors import UsageError
from misotune.samples import MODES, Mode

if TYPE_CHECKING:
    from misotune.data.account import Account, BadRow
    from misotune.data.prepare import Prepared

DATA_ROOT = Path("data")
JOINS = ("lines", "bullets", "paragraph", "mixed")
_LIVE_PROGRESS_ROWS = 100
_PLAIN_PROGRESS_ROWS = 10_000
_NUM_BAD_SHOWN = 5

# The shipped recipe that reads a dataset at its default place.
_RECIPES = {
    ("crab", "para"): "recipes/llama3_crab.yaml",
    ("starter", "para"): "recipes/quickstart.yaml",
    ("r1", "succ"): "recipes/llama3_r1.yaml",
}
_OTHER_RECIPE = "recipes/quickstart.yaml"


def prepare(
    source: Annotated[str, typer.Argument(help="crab, sharegpt, r1, starter, a data file, or a hub id (owner/name).")],
    mode: Annotated[str, typer.Option(help=f"The inputs a row gets: {', '.join(MODES)}.")] = "para",
    data: Annotated[Path | None, typer.Option(help="Read the source's rows from this file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; data/SOURCE-MODE unless given.")] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Keep this many rows at most.")] = None,
    join: Annotated[
        str | None,
        typer.Option(help=f"How constraints are joined on: {', '.join(JOINS)}; the source's own way unless given."),
    ] = None,
    max_dropped: Annotated[
        float, typer.Option(min=0, max=1, help="Fail when a larger share of the rows is bad.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Draws the joins of 'mixed'.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a multi-input dataset out of instruction data."""
    chosen_mode: Any = _one_of("--mode", mode, MODES)
    chosen_join: Any = None if join is None else _one_of("--join", join, JOINS)

    from misotune.data.prepare import PrepareSettings, prepare_dataset
    from misotune.data.sources.registry import find_source

    found = find_source(source, data)
    target = out or DATA_ROOT / f"{found.name}-{mode}"
    settings = PrepareSettings(chosen_mode, seed, chosen_join, limit, max_dropped, split)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    with _Progress(found.name, errors) as progress:
        prepared = prepare_dataset(found, target, settings, progress.show_row, progress.show_bad)
    if as_json:
        _print_json(prepared)
    else:
        _print_result(prepared, found.name, chosen_mode)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"{option} {value!r}: {hint}allowed are {', '.join(allowed)}")
    return value


class _Progress:
    """Rows as they pass: a live line on a terminal, a plain line now and then elsewhere; bad rows by name.

    All of it goes to stderr, so that `--json` leaves stdout to the result.
    """

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._num_bad = 0
        self._status = console.status(f"{name}: reading") if console.is_terminal else None

    def __enter__(self) -> "_Progress":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show_row(self, account: "Account") -> None:
        every = _LIVE_PROGRESS_ROWS if self._status is not None else _PLAIN_PROGRESS_ROWS
        if account.read % every:
            return
        line = f"{self._name}: {account.read:,} rows read, {account.kept:,} kept"
        if self._status is not None:
            self._status.update(line)
        else:
            self._console.print(line)

    def show_bad(self, row: "BadRow") -> None:
        self._num_bad += 1
        if self._num_bad <= _NUM_BAD_SHOWN:
            self._console.print(Text.assemble(("bad row: ", "yellow"), f"{row.where}: {row.reason}"))
        elif self._num_bad == _NUM_BAD_SHOWN + 1:
            self._console.print("... further bad rows are only counted here; dropped.jsonl in the dataset lists all")


def _print_json(prepared: "Prepared") -> None:
    result = {"out": str(prepared.out), "rows": prepared.num_rows, "account": prepared.account.to_dict()}
    typer.echo(json.dumps(result, ensure_ascii=False))


def _print_result(prepared: "Prepared", source: str, mode: Mode) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(_account_table(prepared, f"{source}, {mode}"))
    rows = f"{prepared.num_rows:,} rows, {_inputs_per_row(prepared.account)}"
    console.print(f"{rows}, in [bold]{escape(str(prepared.out))}[/bold]")
    console.print(f"next: [bold]{escape(next_command(prepared.out, source, mode))}[/bold]")


def _account_table(prepared: "Prepared", title: str) -> Table:
    account = prepared.account
    table = Table("what became of the rows", "rows", title=title, title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("read", f"{account.read:,}")
    table.add_row("kept", f"{account.kept:,}", style="bold")
    split_by_sentence = sum(rows for rule, rows in account.rules.items() if rule.endswith("/paragraph"))
    apart = account.rules.total() - split_by_sentence
    if apart:
        table.add_row("  with constraints apart", f"{apart:,}")
    if split_by_sentence:
        table.add_row("  with constraints run together, cut by sentence", f"{split_by_sentence:,}")
    groups = (
        ("  one input: ", account.one_input),
        ("  changed: ", account.changed),
        ("left out: ", account.skipped),
        ("bad: ", account.bad),
    )
    for label, counts in groups:
        for reason, rows in counts.most_common():
            table.add_row(escape(label + reason), f"{rows:,}")
    return table


def _inputs_per_row(account: "Account") -> str:
    counts = account.num_inputs
    fewest, most = min(counts), max(counts)
    if fewest == most:
        return f"{most} input{'s' if most > 1 else ''} each"
    mean = sum(n * rows for n, rows in counts.items()) / counts.total()
    return f"{fewest} to {most} inputs each ({mean:.1f} on average)"


def next_command(out: Path, source: str, mode: Mode) -> str:
    """Returns the command that trains on the dataset, as short as the shipped recipes allow."""
    recipe = _RECIPES.get((source, mode))
    if recipe is not None and out == DATA_ROOT / f"{source}-{mode}":
        return f"misotune train {recipe}"
    path = shlex.quote(f"data.path={out}")
    if recipe is not None:
        return f"misotune train {recipe} {path}"
    train_mode = "sft" if mode == "flat" else mode
    return f"misotune train {_OTHER_RECIPE} {path} miso.mode={train_mode}"
