"""Answers of chat servers on disk, by what was asked."""

import sqlite3
import time
from pathlib import Path
from types import TracebackType

from misotune.errors import UsageError

_NUM_TRIES = 100
_PAUSE_S = 0.05


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
            self._use_write_ahead_log()
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            raise UsageError(
                f"{path}: cannot be used as a cache of answers ({error}); name or delete another file"
            ) from error

    def _use_write_ahead_log(self) -> None:
        """A write costs no disk sync then, and a kill no answer.

        Two processes that begin at once both want to be the one that changes a new file, and SQLite does not let
        them wait for one another: one is told at once that the file is locked.
        """
        for tries_left in reversed(range(_NUM_TRIES)):
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError:
                if not tries_left:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return

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
