"""Rows out of JSON: a row a line, a list of rows, or rows by their names, with a bounded part in memory.

The standard library's own scanner does the work: it is faster than streaming parsers, and a row that is not all
there yet is scanned again with more of the file.
"""

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from misotune.data.rows import MAX_ROW_BYTES, TOO_LONG, BrokenRow, Row
from misotune.errors import DataError

_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 2**16
_PIECE_BYTES = 2**16
_SPACE = re.compile(r"[ \t\r\n]*")
_DEEP = "JSON is nested too deeply"


def json_rows(path: Path, file: BufferedIOBase) -> Iterator[Row | BrokenRow]:
    """Yields the rows of JSON lines, of a JSON array, or of an object whose values are all objects.

    Raises:
        DataError: The array or object is broken: what follows the fault cannot be found.
    """
    form = _form_of(file)
    file.seek(0)
    if form == "lines":
        return _line_rows(path, file)
    text = _Text(path, file)
    return _array_rows(text) if form == "array" else _object_rows(text)


def _form_of(file: BufferedIOBase) -> str:
    """`lines`, `array` or `object`, from the first lines that are not blank."""
    head = _next_head(file).removeprefix(_BOM).strip()
    if head.startswith(b"["):
        return "array"
    if not head.startswith(b"{"):
        return "lines"
    following = _next_head(file).strip()
    if len(head) > _HEAD_BYTES - len(_BOM) - 2:  # cut: a long first row, or all rows on one line
        return "lines"
    try:
        values = json.loads(head)
    except (ValueError, RecursionError):
        spread = head.endswith((b"{", b"[", b":")) or (head.endswith(b",") and not following.startswith(b"{"))
        return "object" if spread else "lines"
    only = not following and isinstance(values, dict)
    return "object" if only and values and all(isinstance(value, dict) for value in values.values()) else "lines"


def _next_head(file: BufferedIOBase) -> bytes:
    while line := file.readline(_HEAD_BYTES):
        if line.strip():
            return line
    return b""


def _line_rows(path: Path, file: BufferedIOBase) -> Iterator[Row | BrokenRow]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES):
        number += 1
        if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (piece := file.readline(_PIECE_BYTES)) and not piece.endswith(b"\n"):
                pass
            yield BrokenRow(f"{path}:{number}", number, TOO_LONG)
        elif line.strip():
            yield _line_row(path, number, line.removeprefix(_BOM) if number == 1 else line)


def _line_row(path: Path, number: int, line: bytes) -> Row | BrokenRow:
    where = f"{path}:{number}"
    try:
        values = json.loads(line.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return BrokenRow(where, number, f"invalid UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BrokenRow(where, number, f"broken JSON at column {error.colno}: {_message(error)}")
    except RecursionError:
        return BrokenRow(where, number, _DEEP)
    except ValueError as error:  # a number of more digits than Python reads
        return BrokenRow(where, number, f"broken JSON: {str(error).split(';')[0]}")
    return _checked(where, number, values)


def _array_rows(text: "_Text") -> Iterator[Row | BrokenRow]:
    text.take("[")
    while text.peek() != "]":
        line = text.line
        values, is_utf8 = text.value()
        yield _checked(f"{text.path}:{line}", line, values, is_utf8)
        text.next_item("]", "array", "rows")


def _object_rows(text: "_Text") -> Iterator[Row | BrokenRow]:
    """Rows by their names; an object of anything else is one row."""
    single: dict[str, Any] = {}
    single_line = text.line
    text.take("{")
    while text.peek() != "}":
        line = text.line
        name, _ = text.value()
        text.take(":")
        values, is_utf8 = text.value()
        if single or not isinstance(values, dict):
            single[name] = values
        else:
            yield _checked(f"{text.path}:{line}", line, values, is_utf8)
        text.next_item("}", "object", "values")
    if single:
        yield Row(f"{text.path}:{single_line}", single_line, single)


class _Text:
    """The text of a JSON file from the first value that is not yet taken on.

    Attributes:
        path: The file, for errors.
    """

    def __init__(self, path: Path, file: BufferedIOBase) -> None:
        self.path = path
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._line = 1
        self._counted = 0
        self._is_whole = False
        self._is_utf8 = True
        self._error: Exception | None = None
        self._read()
        self._buffer = self._buffer.removeprefix("\ufeff")

    @property
    def line(self) -> int:
        """The line on which the next value begins."""
        self.peek()
        self._line += self._buffer.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def peek(self) -> str:
        """Returns the next character that is not space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self._at < len(self._buffer) or self._is_whole:
                return self._buffer[self._at : self._at + 1]
            self._read()

    def take(self, character: str) -> None:
        """Goes past a character that must stand here."""
        found = self.peek()
        if found != character:
            raise self.fault(f"broken JSON: expected {character!r}" if found else "the JSON is cut short")
        self._at += 1

    def next_item(self, end: str, what: str, items: str) -> None:
        """Goes past the comma after an item, or up to the end."""
        following = self.peek()
        if following == ",":
            self._at += 1
        elif following != end:
            reason = f"broken JSON: no comma between {items}" if following else f"the JSON {what} is not closed"
            raise self.fault(reason)

    def value(self) -> tuple[Any, bool]:
        """Returns the next value, and whether all of it is UTF-8."""
        if not self.peek():
            raise self.fault("the JSON array is not closed; the file is cut short")
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not self._is_whole and len(self._buffer) - self._at <= MAX_ROW_BYTES:
                    self._read()  # it may be all there with more of the file
                    continue
                raise self._broken(error) from error
            except (RecursionError, ValueError) as error:
                raise self.fault(_DEEP if isinstance(error, RecursionError) else f"broken JSON: {error}") from error
            if end == len(self._buffer) and not self._is_whole and self._buffer[end - 1] not in '}]"':
                self._read()  # a number may go on
                continue
            is_utf8 = self._is_utf8 or _is_utf8(self._buffer[self._at : end])
            self._at = end
            return value, is_utf8

    def fault(self, reason: str) -> DataError:
        """Returns the error for a fault at the next value."""
        return DataError(f"{self.path}:{self.line}: {reason}")

    def _broken(self, error: json.JSONDecodeError) -> DataError:
        if not self._is_whole:
            return self.fault(f"{TOO_LONG}, or is not closed; write the rows as JSON lines")
        line = self.line + self._buffer.count("\n", self._at, error.pos)
        column = error.pos - self._buffer.rfind("\n", 0, error.pos)
        return DataError(f"{self.path}:{line}: broken JSON at column {column}: {_message(error)}")

    def _read(self) -> None:
        """Lets go of what was taken, and reads on: as much again as there is, so that long rows stay linear."""
        self._line += self._buffer.count("\n", self._counted, self._at)
        rest = self._buffer[self._at :]
        piece = self._next_piece(max(_PIECE_BYTES, len(rest)))
        text = self._decode(piece, final=not piece)
        if self._is_utf8:
            self._is_utf8 = _is_utf8(text)
        self._buffer, self._at, self._counted = rest + text, 0, 0
        self._is_whole = not piece

    def _next_piece(self, size: int) -> bytes:
        """Up to so many bytes; a broken gzip file first gives what could be unpacked, then its error."""
        piece = b""
        while len(piece) < size and self._error is None:
            try:
                more = self._file.read1(size - len(piece))
            except (EOFError, OSError, zlib.error) as error:
                self._error = error
                break
            if not more:
                break
            piece += more
        if not piece and self._error is not None:
            raise self._error
        return piece


def _is_utf8(text: str) -> bool:
    """False when `surrogateescape` had to make half a surrogate pair of a byte; much faster than a search for one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(where: str, number: int, values: Any, is_utf8: bool = True) -> Row | BrokenRow:
    if not is_utf8:
        return BrokenRow(where, number, "invalid UTF-8")
    if not isinstance(values, dict):
        return BrokenRow(where, number, f"a row must be a JSON object, this is {values!r:.40}")
    return Row(where, number, values)


def _message(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")
