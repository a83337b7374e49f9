"""Rows out of data files: JSON lines, JSON, CSV and Parquet, plain or gzip, a bounded part of the file at a time.

A row that cannot be read is yielded as a `BrokenRow`, so that one bad line does not cost the file.
"""

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from misotune.data.csv_rows import csv_rows
from misotune.data.json_rows import json_rows
from misotune.data.parquet_rows import parquet_rows
from misotune.data.rows import BrokenRow, Row
from misotune.errors import DataError, UsageError

__all__ = ["SUFFIXES", "BrokenRow", "Row", "read_rows", "stem_of"]

_PLAIN_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*_PLAIN_SUFFIXES, ".parquet", *(f"{suffix}.gz" for suffix in _PLAIN_SUFFIXES))

_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_OTHER_FORMS = {
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it first (zstd -d), or pack it with gzip",
    b"\xfd7zXZ": "packed with xz; unpack it first (unxz), or pack it with gzip",
    b"BZh": "packed with bzip2; unpack it first (bunzip2), or pack it with gzip",
    b"PK\x03\x04": "a zip archive; unpack it first (unzip)",
    b"ARROW1": "an Arrow file; write it as Parquet",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}


def stem_of(path: Path) -> str:
    """Returns the file's name without its data suffixes.

    >>> stem_of(Path("a/rows.v2.jsonl.gz"))
    'rows.v2'
    """
    name = path.name.removesuffix(".gz")
    return next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), Path(name).stem)


def read_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """Yields the rows of a data file, whatever of the known forms it has.

    Packed or not, Parquet, JSON lines or JSON is found by content; CSV (tabs for `.tsv`) by the file's name.

    Raises:
        UsageError: There is no such file.
        DataError: The file as a whole cannot be read, or holds no row; rows before the fault are yielded first.
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
        magic = raw.read(6)
        raw.seek(0)
        if magic.startswith(_PARQUET_MAGIC):
            yield from parquet_rows(path)
        elif magic.startswith(_GZIP_MAGIC):
            with gzip.open(raw) as unpacked:
                yield from _text_rows(path, unpacked)
        else:
            yield from _text_rows(path, raw)


def _text_rows(path: Path, file: BufferedIOBase) -> Iterator[Row | BrokenRow]:
    opening = file.read(6)
    file.seek(0)
    for magic, what in _OTHER_FORMS.items():
        if opening.startswith(magic):
            raise DataError(f"{path}: {what}")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        return csv_rows(path, file, delimiter="\t" if name.endswith(".tsv") else None)
    return json_rows(path, file)
