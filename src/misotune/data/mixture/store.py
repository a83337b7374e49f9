"""Rows on disk while a mixture is built: its order is known only when all its sources have been read."""

import pickle
import tempfile
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from misotune.data.records import Record


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A record, and what the statistics of texts take of it."""

    record: Record
    measured: tuple[Any, ...]


class RowStore:
    """Rows of one process, by number, in a nameless temporary file: it is gone with the process.

    Args:
        folder: Where the file is made.
    """

    def __init__(self, folder: Path) -> None:
        self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - __exit__ closes it
        self._starts = array("Q", [0])

    def __enter__(self) -> "RowStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, row: StoredRow) -> int:
        """Keeps a row and returns its number. All are added before the first is read."""
        content = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
        self._file.write(content)
        self._starts.append(self._starts[-1] + len(content))
        return len(self) - 1

    def __getitem__(self, number: int) -> StoredRow:
        self._file.seek(self._starts[number])
        return pickle.loads(self._file.read(self._starts[number + 1] - self._starts[number]))
