"""Answers of chat servers on disk, by what was asked."""

import sqlite3
from pathlib import Path
from types import TracebackType

from misotune.errors import UsageError


class AnswerCache:
    """Answers by key in one SQLite file: a killed process loses no answer that it had written.

    Used by one thread at a time; other processes may use the same file.

    Raises:
        UsageError: The file cannot be opened, or is no such cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")  # a write costs no disk sync, and a kill no answer
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            raise UsageError(
                f"{path}: cannot be used as a cache of answers ({error}); name or delete another file"
            ) from error

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    @property
    def num_answers(self) -> int:
        """Answers in the file."""
        return self._db.execute("SELECT count(*) FROM answers").fetchone()[0]

    def get(self, key: str) -> str | None:
        """Returns the answer of a key, or None."""
        row = self._db.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
        return row[0] if row is not None else None

    def put(self, key: str, text: str) -> None:
        """Keeps an answer, at once."""
        clean = text.encode("utf-8", "replace").decode()
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, clean))
