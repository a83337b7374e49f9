"""`misotune compare`: is one model better than another, on what, and is the difference real?"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from misotune.evaluation.comparison.compare import Comparison, Pairs, ResultPair
    from misotune.evaluation.comparison.difference import Difference

_LONGEST_TEXT = 600
# Columns of a table in a file or pipe, where nothing limits them.
_FILE_WIDTH = 120


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT",
            help="Two or more result folders of eval, or runs that were evaluated; the first is the baseline.",
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Which task, where runs hold several. (default: the only one they share)"),
    ] = None,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Print N wins and N losses with their texts.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write a page, pictures and comparison.json there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare results of one task, prompt by prompt.

    Differences come with 95 % intervals and exact tests, overall and by type; within the noise is called that.
    """
    from misotune.evaluation.comparison.compare import compare_results

    if out is not None:
        from misotune.evaluation.comparison.results import check_comparison_folder

        check_comparison_folder(out)
    messages = Console(stderr=True, soft_wrap=True, highlight=False)
    comparison = compare_results(
        results, task=task, on_pair=lambda text: messages.print(f"comparing {text}", markup=False)
    )
    show_comparison(comparison, out=out, num_shown=show, as_json=as_json)


def show_comparison(
    comparison: "Comparison", *, out: Path | None = None, num_shown: int = 0, as_json: bool = False
) -> None:
    """Prints a comparison, and writes its folder where one is named.

    Args:
        comparison: What was found.
        out: The folder; None for none.
        num_shown: Wins, and as many losses, to print with their texts.
        as_json: JSON in place of tables.

    Raises:
        UsageError: The folder holds something else.
        RunError: The folder cannot be written.
    """
    page = None
    if out is not None:
        from misotune.evaluation.comparison.results import write_comparison

        page = write_comparison(out, comparison)
    if as_json:
        content = comparison.to_json() | ({} if out is None else {"folder": str(out)})
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    for pair in comparison.pairs:
        _print_pair(comparison, pair, num_shown, console)
    if page is not None:
        console.print(f"page: {page}", markup=False)


def _print_pair(comparison: "Comparison", pair: "ResultPair", num_shown: int, console: Console) -> None:
    from misotune.evaluation.comparison.words import lettered_names, sentence
    from misotune.report.figure_names import figure_name

    names = {name[0]: name for name in lettered_names(comparison.results)}
    both = " and ".join(names[letter] for letter in pair.letters)
    title = f"{comparison.task}, {pair.num_prompts:,} prompts: {both}"
    _print_table(_table(title, "figure", pair, pair.overall, has_noise=True), console)
    for kind in pair.tables:
        lines = pair.main_lines(kind)
        # Most types are often alike to the last verdict; the page lists them too.
        shown = [line for line in lines if line.num_a_higher or line.num_b_higher]
        left_out = f"; {len(lines) - len(shown)} with no difference left out" if len(shown) < len(lines) else ""
        what = f"{figure_name(lines[0].metric)} by {kind}; p corrected for {len(lines)} lines (Holm){left_out}"
        _print_table(_table(what, kind, pair, shown), console)
    for note in pair.notes:
        console.print(f"note: {note}", markup=False)
    console.print(sentence(pair.main, pair.letters), markup=False, style="bold")
    a, b = pair.letters
    console.print(
        f"{figure_name(pair.main_metric)}: {b} higher on {len(pair.wins):,} and lower on {len(pair.losses):,} of "
        f"{pair.main.num_prompts:,} prompts\n"
    )
    _print_texts(f"{b} higher", pair, pair.wins[:num_shown], console)
    _print_texts(f"{a} higher", pair, pair.losses[:num_shown], console)


def _print_table(table: Table, console: Console) -> None:
    if table.row_count:
        table.box = box.SIMPLE_HEAD if console.is_terminal else None
        console.print(table)
        console.print()


def _table(
    title: str, heading: str, pair: "ResultPair", lines: Sequence["Difference"], *, has_noise: bool = False
) -> Table:
    from misotune.evaluation.comparison import words
    from misotune.evaluation.comparison.difference import verdict
    from misotune.report.figure_names import figure_name

    table = Table(title=escape(title), title_justify="left")
    table.add_column(heading, overflow="fold")
    noise = ("noise",) if has_noise else ()
    for name in ("number", f"{pair.letters[0]} %", f"{pair.letters[1]} %", "diff.", "95 % interval", *noise, "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for line in lines:
        table.add_row(
            escape(figure_name(line.metric) if line.label == "all" else line.label),
            f"{line.num_prompts if line.num_parts is None else line.num_parts:,}",
            words.percent(line.a),
            words.percent(line.b),
            words.points(line.difference),
            words.interval(line),
            *((words.noise_text(line),) if has_noise else ()),
            words.p_text(line.decisive_p),
            verdict(line, pair.letters),
            style=None if line.better is None else "green" if line.better == "b" else "red",
        )
    return table


def _print_texts(what: str, pair: "ResultPair", rows: "Pairs", console: Console) -> None:
    for a, b in rows:
        console.print(f"{what}: key {a.key}", markup=False, style="bold")
        for name, text in (("prompt", a.prompt), (pair.letters[0], a.response), (pair.letters[1], b.response)):
            cut = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
            console.print(f"  {name}: " + cut.replace("\n", "\n    "), markup=False)
        console.print()
