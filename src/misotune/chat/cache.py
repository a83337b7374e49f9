"""Answers of models on disk, by what was asked."""

import contextlib
import errno
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from misotune.chat.messages import ChatAnswer
from misotune.errors import RunError, UsageError

_NUM_TRIES = 100
_PAUSE_S = 0.05
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# A quota, or a limit on a file's size, is an I/O error to SQLite.
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_NOT_WRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
# What files of the first version lack, and get when they are opened.
_ADDED_COLUMNS = {"finish_reason": "TEXT", "num_tokens": "INTEGER"}


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
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error
        try:
            self._use_write_ahead_log()
            self._db.execute("PRAGMA synchronous=NORMAL")
            if not self._column_names().issuperset(_ADDED_COLUMNS):
                self._make_table()
            self._db.execute("SELECT key, text FROM answers LIMIT 1")
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from error

    def _use_write_ahead_log(self) -> None:
        """A write costs no disk sync then, and a kill no answer.

        Two processes that begin at once both want to be the one that changes a new file, and SQLite does not let
        them wait for one another: one is told at once that the file is locked.
        """
        for tries_left in reversed(range(_NUM_TRIES)):
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if not tries_left or _code(error) not in _LOCKED:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return

    def _make_table(self) -> None:
        """Makes the table, or brings one of the first version up to date; another process waits meanwhile."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
        self._db.execute("SELECT key, text FROM answers LIMIT 1")  # before anything is done to someone else's table
        for name in sorted(_ADDED_COLUMNS.keys() - self._column_names()):
            self._db.execute(f"ALTER TABLE answers ADD COLUMN {name} {_ADDED_COLUMNS[name]}")
        self._db.execute("COMMIT")

    def _column_names(self) -> set[str]:
        return {row[1] for row in self._db.execute("PRAGMA table_info(answers)")}

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    @property
    def num_answers(self) -> int:
        """Answers in the file."""
        with self._told("answers cannot be read"):
            return self._db.execute("SELECT count(*) FROM answers").fetchone()[0]

    def get(self, key: str) -> ChatAnswer | None:
        """Returns the answer of a key, or None.

        Raises:
            RunError: The file cannot be read; says how to go on.
        """
        with self._told("answers cannot be read"):
            query = "SELECT text, finish_reason, num_tokens FROM answers WHERE key = ?"
            row = self._db.execute(query, (key,)).fetchone()
        return None if row is None else ChatAnswer(*row, is_cached=True)

    def put(self, key: str, answer: ChatAnswer) -> None:
        """Keeps an answer, at once.

        Raises:
            RunError: It cannot be written; says how to go on.
        """
        clean = answer.text.encode("utf-8", "replace").decode()
        row = (key, clean, answer.finish_reason, answer.num_tokens)
        with self._told("an answer cannot be kept", "; those before it are"):
            self._db.execute(
                "INSERT OR REPLACE INTO answers (key, text, finish_reason, num_tokens) VALUES (?, ?, ?, ?)", row
            )

    @contextlib.contextmanager
    def _told(self, what: str, comfort: str = "") -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(
                f"{self.path}: {what} ({error}){comfort}: {_cure(error)} and run the same command again, and it goes "
                "on from there"
            ) from error

    def _unusable(self, error: sqlite3.Error | OSError) -> UsageError:
        return UsageError(f"{self.path}: cannot be used as a cache of answers ({error}); {_cure(error)}")


def _cure(error: sqlite3.Error | OSError) -> str:
    code = _code(error)
    if code in _NO_ROOM or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return "make room there"
    if code in _NOT_WRITABLE or isinstance(error, OSError):
        return "make it and its folder writable"
    if code in _LOCKED:
        return "end the other process that uses it"
    return "delete it, or name another file"


def _code(error: BaseException) -> int | None:
    """Returns SQLite's primary result code."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
