"""Rows out of CSV files: the first row names the columns."""

import csv
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from misotune.data.rows import MAX_ROW_BYTES, TOO_LONG, BrokenRow, Row
from misotune.errors import DataError

_DELIMITERS = ",;\t|"
_PIECE_BYTES = 2**20


def csv_rows(path: Path, file: BufferedIOBase, delimiter: str | None) -> Iterator[Row | BrokenRow]:
    """Yields the rows of a CSV file, with quotation marks doubled inside quotations (RFC 4180).

    Args:
        path: What to call the file in an error.
        file: Its bytes.
        delimiter: What stands between cells; None: what stands most often in the first line.

    Raises:
        DataError: The first row does not name the columns, or a quotation is never closed.
    """
    # The library's own limit is 128 KiB; it is one for the whole process, and is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    lines = _Lines(file)
    first = next(lines, "")
    if delimiter is None:
        delimiter = max(_DELIMITERS, key=first.count)
    lines.put_back(first)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names = _names(path, reader)
    while True:
        line = lines.number + 1
        where = f"{path}:{line}"
        lines.invalid = lines.too_long = None
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield _fault(path, line, lines, error)
            continue
        if cells is None:
            return
        if lines.too_long and lines.number > line:
            raise DataError(f"{where}: {TOO_LONG}, and where it ends cannot be told")
        if lines.too_long:
            yield BrokenRow(where, line, TOO_LONG)
        elif lines.invalid:
            yield BrokenRow(where, line, f"invalid UTF-8 at byte {lines.invalid}")
        elif cells and len(cells) != len(names):
            yield BrokenRow(where, line, f"a row of another length ({len(cells)} cells for {len(names)} columns)")
        elif cells:
            yield Row(where, line, dict(zip(names, cells, strict=True)))


class _Lines:
    """The decoded lines of a file; notes what was wrong with those handed out last.

    Attributes:
        number: Lines handed out.
        invalid: The byte of the first line that is not UTF-8, counted from 1.
        too_long: True when a line was cut.
    """

    def __init__(self, file: BufferedIOBase) -> None:
        self.number = 0
        self.invalid: int | None = None
        self.too_long: bool | None = None
        self._file = file
        self._next: str | None = None

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self._next is not None:
            line, self._next = self._next, None
            self.number += 1
            return line
        raw = self._file.readline(MAX_ROW_BYTES)
        if not raw:
            raise StopIteration
        self.number += 1
        if len(raw) == MAX_ROW_BYTES and not raw.endswith(b"\n"):
            self.too_long = True
            while (piece := self._file.readline(_PIECE_BYTES)) and not piece.endswith(b"\n"):
                pass
            raw = b"\n"  # whatever it was, the row is refused
        if self.number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.invalid = self.invalid or error.start + 1
            return raw.decode("utf-8", "replace")

    def put_back(self, line: str) -> None:
        self._next = line
        self.number -= 1


def _names(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{path}:1: the first row must name the columns ({error})") from error
    if not names:
        raise DataError(f"{path}: the file holds no rows")
    doubled = {name for name in names if names.count(name) > 1}
    if doubled or "" in names:
        what = f"{sorted(doubled)[0]!r} twice" if doubled - {""} else "an empty name"
        raise DataError(f"{path}:1: the first row must name the columns, it has {what}")
    return names


def _fault(path: Path, line: int, lines: _Lines, error: csv.Error) -> BrokenRow:
    """The broken row, where the reader goes on after it."""
    if "field limit" in str(error):
        raise DataError(f'{path}:{line}: {TOO_LONG}; is a quotation mark (") not closed?') from error
    if "unexpected end of data" in str(error):
        raise DataError(f'{path}:{line}: a quotation mark (") opened in this row is not closed') from error
    reason = TOO_LONG if lines.too_long else f"broken CSV ({error})"
    return BrokenRow(f"{path}:{line}", line, reason)
