"""Rows out of data files: JSON lines, JSON arrays and Parquet, plain or gzip, one row at a time.

A line that cannot be read is yielded as a `BrokenRow`, so that one bad line does not cost the file.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from misotune.errors import DataError, UsageError

SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_PARQUET_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Row:
    """A row and where it stands: `file:line` (Parquet: `file: row N`)."""

    where: str
    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that cannot be read, with the reason."""

    where: str
    number: int
    reason: str


def stem_of(path: Path) -> str:
    """Returns the file's name without its data suffixes.

    >>> stem_of(Path("a/rows.v2.jsonl.gz"))
    'rows.v2'
    """
    name = path.name.removesuffix(".gz")
    return next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), Path(name).stem)


def read_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """Yields the rows of a data file, whatever of the known forms it has (found by content, not by name).

    JSON lines and Parquet are streamed; a JSON array is read whole.

    Raises:
        UsageError: There is no such file.
        DataError: The file as a whole cannot be read, or holds no row.
    """
    if not path.is_file():
        what = "a folder; name a file in it" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}")
    rows = iter(_open_rows(path))
    try:
        first = next(rows, None)
        if first is None:
            raise DataError(f"{path}: the file holds no rows")
        yield first
        yield from rows
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: broken gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open_rows(path: Path) -> Iterator[Row | BrokenRow]:
    with path.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic == _PARQUET_MAGIC:
            yield from _parquet_rows(path)
        elif magic[:2] == _GZIP_MAGIC:
            with gzip.open(raw) as unpacked:
                yield from _json_rows(path, unpacked)  # pyright: ignore[reportArgumentType]
        else:
            yield from _json_rows(path, raw)


def _json_rows(path: Path, file: BinaryIO) -> Iterator[Row | BrokenRow]:
    """JSON lines, or a JSON array when the first character says so."""
    leading = 0
    for line in file:
        leading += 1
        if not line.strip():
            continue
        text = line.removeprefix(b"\xef\xbb\xbf")
        if text.lstrip()[:1] == b"[":
            yield from _array_rows(path, text + file.read(), leading)
        elif text.strip() == b"{":  # one object spread over lines: not JSON lines
            yield from _object_rows(path, text + file.read(), leading)
        else:
            yield _line_row(path, leading, text)
            yield from (_line_row(path, n, x) for n, x in enumerate(file, start=leading + 1) if x.strip())
        return


def _line_row(path: Path, number: int, line: bytes) -> Row | BrokenRow:
    where = f"{path}:{number}"
    try:
        values = json.loads(line.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return BrokenRow(where, number, f"invalid UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BrokenRow(where, number, _json_fault(error))
    except RecursionError:
        return BrokenRow(where, number, "JSON is nested too deeply")
    return _checked(where, number, values)


def _json_fault(error: json.JSONDecodeError) -> str:
    return f"broken JSON at column {error.colno}: {error.msg.removesuffix(' at')}"


def _array_rows(path: Path, content: bytes, first_line: int) -> Iterator[Row | BrokenRow]:
    """The objects of a JSON array, each with the line it begins on."""
    text = _decoded(path, content)
    decoder = json.JSONDecoder()
    at, line, counted = text.index("[") + 1, first_line, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text):
            raise DataError(f"{path}:{line}: the JSON array is not closed; the file is cut short")
        if text[at] == "]":
            return
        try:
            values, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            broken = first_line + error.lineno - 1
            raise DataError(f"{path}:{broken}: {_json_fault(error)}") from error
        yield _checked(f"{path}:{line}", line, values)


def _object_rows(path: Path, content: bytes, first_line: int) -> Iterator[Row | BrokenRow]:
    try:
        values = json.loads(_decoded(path, content))
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}:{line}: {_json_fault(error)}") from error
    yield _checked(f"{path}:{first_line}", first_line, values)


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: invalid UTF-8") from error


def _checked(where: str, number: int, values: Any) -> Row | BrokenRow:
    if not isinstance(values, dict):
        return BrokenRow(where, number, f"a row must be a JSON object, this is {values!r:.40}")
    return Row(where, number, values)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}: row {number}", number, values)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
