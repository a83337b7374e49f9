"""Rows out of Parquet files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from misotune.data.rows import MAX_ROW_BYTES, TOO_LONG, BrokenRow, Row
from misotune.errors import DataError

_BATCH_ROWS = 256
_PAGE_BUFFER_BYTES = 2**20


def parquet_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """Yields the rows of a Parquet file, a batch of bounded size at a time.

    Raises:
        DataError: It is not a readable Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # With a buffer a column is read page by page, without one a whole row group at a time.
        with pyarrow.parquet.ParquetFile(path, buffer_size=_PAGE_BUFFER_BYTES) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
                yield from _rows_of(path, batch, number)
                number += batch.num_rows
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _batch_rows(metadata: Any) -> int:
    """Rows of a batch: fewer where the rows of some group are long, so that a batch stays near the size of a row."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    longest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(_BATCH_ROWS, int(MAX_ROW_BYTES / max(longest, 1))))


def _rows_of(path: Path, batch: Any, number: int) -> Iterator[Row | BrokenRow]:
    if batch.nbytes <= MAX_ROW_BYTES:
        for i, values in enumerate(batch.to_pylist(), start=number + 1):
            yield Row(f"{path}: row {i}", i, values)
        return
    for i in range(batch.num_rows):
        where = f"{path}: row {number + i + 1}"
        row = batch.slice(i, 1)
        if row.nbytes > MAX_ROW_BYTES:
            yield BrokenRow(where, number + i + 1, TOO_LONG)
        else:
            yield Row(where, number + i + 1, row.to_pylist()[0])
