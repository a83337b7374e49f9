"""The options that the forms of `misotune prepare` share, and how their texts are read."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from misotune.cli import completion
from misotune.errors import UsageError
from misotune.samples import MODES

DATA_ROOT = Path("data")
JOINS = ("lines", "bullets", "paragraph", "mixed")
THINKS = ("input", "output", "drop")
DEDUPES = ("off", "exact", "near")
FAIL_KINDS = ("bad", "duplicates", "overlap", "fallback")
DEFAULT_EVALUATION_SETS = ("starter", "ifeval")
DEFAULT_MAX_BAD = 0.05
DEFAULT_MIN_CONFIDENCE = 0.5

_GUARDS = "Guards"

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="crab, sharegpt, r1, starter, a data file, or a hub id (owner/name).",
        autocompletion=completion.sources,
    ),
]
ModeOption = Annotated[str, typer.Option(metavar="MODE", help=f"The inputs a row gets: {', '.join(MODES)}.")]
DataOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Read the source's rows from this file.")]
OutOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write. (default: data/NAME-MODE)")]
SplitOption = Annotated[str, typer.Option(metavar="NAME", help="Split of a hub data set.")]
RevisionOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch, tag or commit of a hub data set. (default: its main branch)"),
]
LimitOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Stop after this many rows that pass the guards. (default: all)")
]
JoinOption = Annotated[
    str | None,
    typer.Option(
        metavar="WAY", help=f"How constraints are joined on: {', '.join(JOINS)}. (default: the source's own way)"
    ),
]
MapOption = Annotated[
    str | None,
    typer.Option(
        "--map", metavar="NAME=COLUMN,...", help="Columns under other names, as instruction=prompt,output=completion."
    ),
]
ThinkOption = Annotated[
    str, typer.Option(metavar="WHERE", help=f"Where the thinking of reasoning traces goes: {', '.join(THINKS)}.")
]
DedupeOption = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help=f"Leave out rows that repeat an earlier one: {', '.join(DEDUPES)}.",
        rich_help_panel=_GUARDS,
    ),
]
DecontaminateOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Leave out rows that share text with the prompts of this evaluation set, or none; may be repeated. "
        f"(default: {' and '.join(DEFAULT_EVALUATION_SETS)})",
        rich_help_panel=_GUARDS,
    ),
]
FailAboveOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=SHARE",
        help=f"Fail, and write nothing, when a larger share of the rows is of this kind: {', '.join(FAIL_KINDS)}; "
        f"may be repeated. (default: bad={DEFAULT_MAX_BAD:g})",
        rich_help_panel=_GUARDS,
    ),
]
MaxDroppedOption = Annotated[
    float | None,
    typer.Option(metavar="SHARE", min=0, max=1, help="The same as --fail-above bad=SHARE.", rich_help_panel=_GUARDS),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=0, help="Processes that work on the rows; the result is the same. (default: one a core)"
    ),
]
SeedOption = Annotated[int, typer.Option(metavar="N", help="Draws whatever is random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def one_of(option: str, value: str, allowed: Sequence[str]) -> Any:
    """Returns the value of an option.

    Raises:
        UsageError: It is not among those allowed.
    """
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"{option} {value!r}: {hint}allowed are {', '.join(allowed)}")
    return value


def parse_map(text: str | None) -> dict[str, str]:
    """Returns the columns of `--map`.

    Raises:
        UsageError: It does not have the form a=b,c=d, or names a column twice.
    """
    columns: dict[str, str] = {}
    for pair in (text or "").split(",") if text is not None else ():
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not (name and equals and column):
            raise UsageError(f"--map {text!r}: {pair!r} does not read NAME=COLUMN, as in instruction=prompt")
        if name in columns:
            raise UsageError(f"--map {text!r}: {name!r} stands there twice")
        columns[name] = column
    return columns


def parse_thresholds(fail_above: Sequence[str] | None, max_dropped: float | None = None) -> dict[Any, float]:
    """Returns the shares above which the command fails, by kind.

    Raises:
        UsageError: A kind is unknown, or a share is no number from 0 to 1.
    """
    thresholds = {"bad": DEFAULT_MAX_BAD if max_dropped is None else max_dropped}
    for text in fail_above or ():
        kind, equals, share = text.partition("=")
        if not equals:
            raise UsageError(f"--fail-above {text!r}: write KIND=SHARE, as in bad=0.01")
        one_of("--fail-above", kind, FAIL_KINDS)
        thresholds[kind] = _share(text, share)
    return thresholds


def parse_evaluation_sets(names: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the evaluation sets of `--decontaminate`.

    Raises:
        UsageError: `none` is given beside another.
    """
    if not names:
        return DEFAULT_EVALUATION_SETS
    if "none" in names:
        if len(names) > 1:
            raise UsageError("--decontaminate none: switches it off, and cannot stand beside another")
        return ()
    return tuple(dict.fromkeys(names))


def num_workers(given: int | None) -> int:
    """Returns the number of worker processes: one a core unless given."""
    if given is not None:
        return given
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(text: str, share: str) -> float:
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"--fail-above {text!r}: the share must be a number from 0 to 1")
    return value
