"""A table of an analysis, as the terminal and the page show it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and cells.

    Attributes:
        title: What it shows; a line.
        columns: The headings.
        rows: As many cells each.
        texts: Places of the columns that hold text, from 0; the others hold numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: frozenset[int] = frozenset({0})


def shorten(text: str, width: int) -> str:
    r"""Returns a text on one line, cut where it is longer than `width` characters.

    >>> shorten("one  two\nthree", 9)
    'one tw...'
    """
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."
