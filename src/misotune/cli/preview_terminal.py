"""The terminal's form of `misotune preview`: rows token by token, and tables."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from misotune.preview.page import Preview
    from misotune.preview.rows import RowView, Run, SampleView, Segment, Token
    from misotune.preview.statistics import Statistics

# The theme's own colours, so that they suit dark and light terminals.
_STYLES = {
    "full": "bold blue",
    "constraint": "bold yellow",
    "base": "bold cyan",
    "chunk": "bold blue",
    "chunked": "bold blue",
    "output": "bold green",
}
_TRAINED, _SPECIAL, _QUIET = "green", "magenta", "dim"
_TOKEN_END = "│"
_TRAINED_MARK, _OTHER_MARK = "+ ", "  "
_CAUSAL, _WHOLE, _NONE = "◣", "■", "·"
_BAR = "▇"
_BAR_WIDTH = 30


class Lengths(NamedTuple):
    """How much of a long text is shown: tokens at either end of a stretch, and stretches at either end."""

    head: int = 90
    tail: int = 45
    runs: int = 4


def print_preview(preview: "Preview", console: Console, lengths: Lengths | None) -> None:
    """Prints rows, statistics and account.

    Args:
        preview: What to print.
        console: Where.
        lengths: How much of long texts is shown; None: all.
    """
    console.print(Text(f"{preview.dataset}: {preview.description}", style="bold"), soft_wrap=True)
    if preview.rows:
        console.print(_legend(), soft_wrap=True)
    for row in preview.rows:
        console.print()
        _print_row(row, console, lengths)
    print_statistics(preview, console)


def print_statistics(preview: "Preview", console: Console) -> None:
    """Prints statistics and account."""
    found = preview.statistics
    console.print()
    console.print(Text(preview.measured, style="bold"), soft_wrap=True)
    for table in _tables(preview):
        table.box = box.SIMPLE_HEAD if console.is_terminal else None
        console.print()
        console.print(table)
    for reason, count in found.left_out.most_common():
        first = ", ".join(found.examples[reason])
        line = Text.assemble(("training leaves out: ", "red"), f"{count:,} x {reason} (first: {first})")
        console.print(line, soft_wrap=True)


def _legend() -> Text:
    return Text.assemble(
        (_TRAINED_MARK.strip(), _TRAINED),
        " and ",
        ("colour", _TRAINED),
        ": trained tokens   ",
        (_TOKEN_END, _QUIET),
        " ends a token   ",
        ("special tokens", _SPECIAL),
        "   ⏎ line break   ⇥ tab   ◌ part of a character",
    )


def _print_row(row: "RowView", console: Console, lengths: Lengths | None) -> None:
    first = row.rows[0]
    facts = [f"source {first.source or '-'}", f"domain {first.domain or '-'}", f"confidence {first.confidence:.2f}"]
    facts += [f"rule {first.rule}"] if first.rule else []
    console.rule(
        Text.assemble((row.label, _QUIET), "  ", (row.name, "bold")), align="left", characters="─", style=_QUIET
    )
    console.print("   ".join(facts), markup=False, soft_wrap=True)
    if len(row.rows) > 1:
        members = ", ".join(f"{member.id} ({member.domain or '-'})" for member in row.rows)
        console.print(f"rows: {members}", markup=False, soft_wrap=True)
    if row.problem is not None and row.samples:
        console.print(Text(f"one of its samples cannot be encoded: {row.problem}", style="bold red"), soft_wrap=True)
    elif row.problem is not None:
        _print_text(row, console, lengths)
    for sample in row.samples:
        _print_sample(sample, console, lengths, is_one_of_many=len(row.samples) > 1)


def _print_text(row: "RowView", console: Console, lengths: Lengths | None) -> None:
    """A row that cannot be encoded, as text."""
    from misotune.preview.tokens import visible

    console.print(Text(f"cannot be encoded: {row.problem}", style="bold red"), soft_wrap=True)
    for member in row.rows:
        texts = [
            (f"x{i} {x.role}, {m['role']}", m["content"]) for i, x in enumerate(member.inputs, 1) for m in x.messages
        ]
        for what, text in [*texts, ("output", member.output)]:
            shown = text if lengths is None else _shorten_text(text, 4 * lengths.head, 4 * lengths.tail)
            console.print(Text(what, style="bold"))
            _print_lines(Text(visible(shown)), console, _OTHER_MARK)


def _shorten_text(text: str, head: int, tail: int) -> str:
    if len(text) <= head + tail:
        return text
    return f"{text[:head]} … {len(text) - head - tail:,} characters … {text[-tail:]}"


def _print_sample(sample: "SampleView", console: Console, lengths: Lengths | None, *, is_one_of_many: bool) -> None:
    name = f"{sample.id}: " if is_one_of_many else ""
    console.print(f"{name}{sample.facts}", markup=False, soft_wrap=True)
    if sample.note:
        console.print(Text(sample.note, style="bold yellow"), soft_wrap=True)
    for segment in sample.segments:
        _print_segment(segment, console, lengths)
    console.print()
    console.print(_attention_picture(sample))


def _print_segment(segment: "Segment", console: Console, lengths: Lengths | None) -> None:
    style = _STYLES.get(segment.kind, "bold")
    heading = Text.assemble((f"{segment.name} {segment.role}", style), f"  {segment.facts}")
    console.print()
    console.print(heading, soft_wrap=True)
    if segment.constraint:
        console.print(Text(f"constraint: {' '.join(segment.constraint.split())}", style="italic"), soft_wrap=True)
    runs = segment.runs()
    hidden = 0 if lengths is None else len(runs) - 2 * lengths.runs
    instruction = 1
    for i, run in enumerate(runs):
        if lengths is not None and hidden > 1 and lengths.runs <= i < len(runs) - lengths.runs:
            if i == lengths.runs:
                console.print(_gap([token for each in runs[i : i + hidden] for token in each.tokens], hidden))
            continue
        if run.instruction > instruction:
            console.print(Text(f"  instruction {run.instruction}", style=_QUIET))
            instruction = run.instruction
        _print_run(run, console, lengths)


def _print_run(run: "Run", console: Console, lengths: Lengths | None) -> None:
    mark = _TRAINED_MARK if run.is_trained else _OTHER_MARK
    tokens = run.tokens
    # A gap takes a line too: not worth it for a few tokens.
    if lengths is None or len(tokens) <= lengths.head + lengths.tail + 10:
        _print_lines(_token_text(tokens), console, mark)
        return
    _print_lines(_token_text(tokens[: lengths.head]), console, mark)
    console.print(_gap(tokens[lengths.head : -lengths.tail]))
    _print_lines(_token_text(tokens[-lengths.tail :]), console, mark)


def _gap(tokens: Sequence["Token"], num_runs: int = 1) -> Text:
    trained = sum(token.is_trained for token in tokens)
    what = f"{len(tokens):,} tokens"
    if num_runs > 1:
        what += f" in {num_runs} stretches"
    if trained:
        what += f", {'all' if trained == len(tokens) else f'{trained:,}'} trained"
    return Text(f"  … {what} … (--full shows all)", style=_QUIET)


def _token_text(tokens: Iterable["Token"]) -> Text:
    from misotune.preview.tokens import PART_SIGN, visible

    text = Text()
    for token in tokens:
        style = _SPECIAL if token.is_special else ""
        style += f" {_TRAINED}" if token.is_trained and not token.is_special else ""
        style += " bold" if token.is_trained else ""
        shown = visible(token.text) or PART_SIGN
        # The end of the token stands before the line break that the token ends with.
        body, line_break = (shown[:-1], "\n") if shown.endswith("\n") else (shown, "")
        text.append(body, style.strip())
        text.append(_TOKEN_END, _QUIET)
        text.append(line_break)
    return text


def _print_lines(text: Text, console: Console, mark: str) -> None:
    """Prints a text wrapped, each line behind its mark."""
    if text.plain.endswith("\n"):
        text = text[: len(text) - 1]
    style = _TRAINED if mark == _TRAINED_MARK else ""
    for line in text.split("\n", allow_blank=True):
        for part in line.wrap(console, max(console.width - len(mark), 20)):
            console.print(Text.assemble((mark, style), part), soft_wrap=True)


def _attention_picture(sample: "SampleView") -> Table:
    """Who attends to whom: queries down, keys across."""
    blocks = {(block.queries, block.keys): _CAUSAL if block.is_causal else _WHOLE for block in sample.attention()}
    table = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False)
    table.add_column(Text("attends to", style=_QUIET))
    for segment in sample.segments:
        table.add_column(segment.name, justify="center")
    table.add_column()
    notes = {0: f"{_CAUSAL} itself, each token and those before it", len(sample.segments) - 1: f"{_WHOLE} every token"}
    for i, segment in enumerate(sample.segments):
        style = _STYLES.get(segment.kind, "bold")
        marks = [blocks.get((i, j), _NONE) for j in range(len(sample.segments))]
        cells = [Text(mark, style=_QUIET if mark == _NONE else style) for mark in marks]
        note = Text(f"  {notes[i]}" if i in notes else "", style=_QUIET)
        table.add_row(Text(f"{segment.name} {segment.role}", style=style), *cells, note)
    return table


def _tables(preview: "Preview") -> list[Table]:
    found = preview.statistics
    tables = [_inputs_table(found), _lengths_table(found)] if found.num_samples else []
    if preview.account:
        table = Table()
        table.add_column("account of prepare", overflow="fold")
        table.add_column("rows", justify="right")
        for depth, what, value in preview.account:
            table.add_row(escape("  " * depth + what), f"{value:,}" if isinstance(value, int) else escape(str(value)))
        tables.append(table)
    return tables


def _inputs_table(found: "Statistics") -> Table:
    table = Table()
    table.add_column("inputs", justify="right")
    table.add_column("samples", justify="right")
    table.add_column("", style="blue")
    most = max(found.inputs.values())
    for number, count in sorted(found.inputs.items()):
        table.add_row(str(number), f"{count:,}", _BAR * max(1, round(_BAR_WIDTH * count / most)))
    return table


def _lengths_table(found: "Statistics") -> Table:
    from misotune.preview.statistics import LENGTHS, summarize

    table = Table()
    table.add_column("tokens per sample")
    for heading in ("median", "90 %", "largest"):
        table.add_column(heading, justify="right")
    for name, summary in found.lengths().items():
        table.add_row(LENGTHS[name], *(f"{value:,.0f}" for value in summary))
    shares = summarize(found.trained_shares)
    table.add_row("share of trained tokens", *(f"{value:.1%}" for value in shares))
    return table
