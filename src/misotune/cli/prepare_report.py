"""What `misotune prepare` prints: progress on stderr; the account, the texts and the next command on stdout."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from misotune.cli.prepare_options import DATA_ROOT
from misotune.samples import Mode

if TYPE_CHECKING:
    from misotune.data.account import Account, DroppedRow
    from misotune.data.mixture.build import PreparedMixture
    from misotune.data.prepare import Prepared

_LIVE_PROGRESS_ROWS = 100
_PLAIN_PROGRESS_ROWS = 10_000
_NUM_BAD_SHOWN = 5
_NUM_LANGUAGES_SHOWN = 5
_BAR_WIDTH = 20
_TEXTS = {
    "prompt_words": "words of a prompt",
    "output_words": "words of a response",
    "constraints": "constraints",
    "turns": "user turns",
}
_FIGURES = ("mean", "min", "p25", "p50", "p75", "p95", "max")

# The shipped recipe that reads a dataset at its default place.
_RECIPES = {
    ("crab", "para"): "recipes/llama3_crab.yaml",
    ("starter", "para"): "recipes/quickstart.yaml",
    ("r1", "succ"): "recipes/llama3_r1.yaml",
}
_OTHER_RECIPE = "recipes/quickstart.yaml"


class Progress:
    """Rows as they pass: a live line on a terminal, a plain line now and then elsewhere; bad rows by name.

    All of it goes to stderr, so that `--json` leaves stdout to the result.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._num_bad = 0
        self._status = self._console.status(f"{name}: reading") if self._console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
        if kind is KeyboardInterrupt:
            self._console.print(f"{self._name}: interrupted; nothing was written", markup=False)

    def show_row(self, account: "Account", source: str = "") -> None:
        """Shows how far the reading is, of one of several sources."""
        every = _LIVE_PROGRESS_ROWS if self._status is not None else _PLAIN_PROGRESS_ROWS
        if account.read % every == 0:
            of_source = f"{source}: " if source else ""
            self.show(f"{of_source}{account.read:,} rows read, {account.kept:,} kept")

    def show(self, line: str) -> None:
        """Shows a line about the work under way."""
        if self._status is not None:
            self._status.update(escape(f"{self._name}: {line}"))
        else:
            self._console.print(f"{self._name}: {line}", markup=False)

    def show_dropped(self, row: "DroppedRow") -> None:
        """Prints the first bad rows."""
        if row.kind != "bad":
            return
        self._num_bad += 1
        if self._num_bad <= _NUM_BAD_SHOWN:
            self._console.print(Text.assemble(("bad row: ", "yellow"), f"{row.where}: {row.reason}"))
        elif self._num_bad == _NUM_BAD_SHOWN + 1:
            self._console.print("... further bad rows are only counted here; dropped.jsonl in the dataset lists all")


def print_json(prepared: "Prepared", **more: Any) -> None:
    """Prints the result for programs."""
    result = {
        "out": str(prepared.out),
        "rows": prepared.num_rows,
        "account": prepared.account.to_dict(),
        "statistics": prepared.statistics,
        **more,
    }
    typer.echo(json.dumps(result, ensure_ascii=False))


def print_result(prepared: "Prepared", title: str, next_command: str) -> None:
    """Prints the result for people, and the command that trains on it."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(_account_table(prepared.account, title))
    console.print(_texts_table(prepared.statistics))
    _print_end(prepared, next_command, console)


def print_mixture(prepared: "PreparedMixture", title: str) -> None:
    """Prints the result of a mixture for people, with the shares before and after."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(_account_table(prepared.account, title))
    console.print(_shares_table(prepared.shares.to_dict()))
    console.print(_texts_table(prepared.statistics))
    if prepared.shares.num_chunks:
        console.print(f"{prepared.shares.num_chunks:,} chunks of {prepared.shares.rows_per_chunk} rows")
    _print_end(prepared, next_of_mixture(prepared.out), console)


def _print_end(prepared: "Prepared", next_command: str, console: Console) -> None:
    rows = f"{prepared.num_rows:,} rows, {_inputs_per_row(prepared.account)}"
    console.print(f"{rows}, in [bold]{escape(str(prepared.out))}[/bold]")
    console.print(f"next: [bold]{escape(next_command)}[/bold]")


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


def next_of_mixture(out: Path) -> str:
    """Returns the command that trains on a mixture."""
    return f"misotune train {_OTHER_RECIPE} {shlex.quote(f'data.path={out}')} miso.mode=sft"


def _account_table(account: "Account", title: str) -> Table:
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
        ("left out: ", account.duplicates),
        ("left out: ", account.overlap),
        ("bad: ", account.bad),
    )
    for label, counts in groups:
        for reason, rows in counts.most_common():
            table.add_row(escape(label + reason), f"{rows:,}")
    return table


def _texts_table(statistics: Mapping[str, Any]) -> Table:
    table = Table("texts", *_FIGURES, title=_languages(statistics), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, label in _TEXTS.items():
        if name in statistics:
            table.add_row(label, *(f"{statistics[name][figure]:,}" for figure in _FIGURES))
    return table


def _languages(statistics: Mapping[str, Any]) -> str:
    found = list(statistics["languages"].items())
    shown = ", ".join(f"{language} {count['share']:.1%}" for language, count in found[:_NUM_LANGUAGES_SHOWN])
    rest = len(found) - _NUM_LANGUAGES_SHOWN
    return f"languages: {shown}" + (f", and {rest} more" if rest > 0 else "")


def _shares_table(shares: Mapping[str, Any]) -> Table:
    table = Table("share of rows", "before", "after", "", "rows", "left out", "repeats", title_justify="left")
    for column in table.columns[4:]:
        column.justify = "right"
    for name, entry in shares["domains"].items():
        before, after = (entry[when]["share_of_rows"] for when in ("before", "after"))
        bar = "█" * round(after * _BAR_WIDTH)
        table.add_row(escape(name), f"{before:.1%}", f"{after:.1%}", bar, f"{entry['after']['rows']:,}", style="bold")
        for source, part in shares["sources"].items():
            if part["domain"] == name:
                before, after = (part[when]["share_of_rows"] for when in ("before", "after"))
                figures = (part["after"]["rows"], part["left_out"], part["repeats"])
                table.add_row(
                    escape(f"  {source}"), f"{before:.1%}", f"{after:.1%}", "", *(f"{figure:,}" for figure in figures)
                )
    return table


def _inputs_per_row(account: "Account") -> str:
    counts = account.num_inputs
    fewest, most = min(counts), max(counts)
    if fewest == most:
        return f"{most} input{'s' if most > 1 else ''} each"
    mean = sum(n * rows for n, rows in counts.items()) / counts.total()
    return f"{fewest} to {most} inputs each ({mean:.1f} on average)"
