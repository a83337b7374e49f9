"""The cache of encoded corpora: found by content, made by one process at a time, pruned to a size.

    ~/.cache/misotune/encoded/      ($MISOTUNE_CACHE/encoded/ where that is set)
        KEY/                        a whole corpus; written beside, named last
        KEY.partial/                shards of a build under way, or cut off: the next build goes on with them
        KEY.lock                    held by the process that builds

A process that waits looks at files only, so it waits as long as it takes; a builder that dies frees the lock.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from misotune.errors import RunError, UsageError
from misotune.storage import replace_folder, write_whole
from misotune.training.encoded import (
    MANIFEST,
    BrokenCorpusError,
    EncodedSamples,
    RowAccount,
    open_corpus,
    write_corpus,
)

Progress = Callable[[int, int], None]
Message = Callable[[str], None]
# Writes shards into a folder, with progress, and returns them in order.
MakeShards = Callable[[Path, Progress], list[Path]]

DEFAULT_LIMIT_GIB = 20.0
PROGRESS = "progress.json"
# Local rank 0 should build, since it shows progress; should it never come, another rank does.
RANK_PATIENCE_S = 20.0

_Opened = tuple[EncodedSamples, RowAccount]
_ENTRY = re.compile(r"[0-9a-f]{32}(\.partial)?")
_POLL_S = 0.2
_HEARTBEAT_S = 0.5


@dataclass(frozen=True, slots=True)
class CachedCorpus:
    """A corpus, and where it was found.

    Attributes:
        samples: The encoded samples.
        account: What became of the dataset's rows.
        key: What it was made of, as a hash.
        folder: Where it lies; None: the cache is switched off.
        was_there: Whether it had been made before.
    """

    samples: EncodedSamples
    account: RowAccount
    key: str
    folder: Path | None
    was_there: bool


def cache_folder() -> Path | None:
    """Returns where encoded corpora lie: `$MISOTUNE_CACHE`, else `~/.cache/misotune`; None with `off`."""
    chosen = os.environ.get("MISOTUNE_CACHE", "")
    if chosen == "off":
        return None
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen or Path(caches, "misotune")).expanduser() / "encoded"


def corpus_key(parts: Mapping[str, Any]) -> str:
    """Returns the key of a corpus: the hash of all that decides its content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def open_or_make(
    folder: Path | None,
    parts: Mapping[str, Any],
    make_shards: MakeShards,
    *,
    patience_s: float = 0.0,
    on_progress: Progress = lambda done, total: None,
    on_message: Message = lambda line: None,
) -> CachedCorpus:
    """Returns the corpus of a key, from the cache where it is there whole; else it is made, and kept there.

    Args:
        folder: The cache; None: the corpus is made and not kept.
        parts: What decides the corpus.
        make_shards: Makes its shards.
        patience_s: How long another process has to begin before this one does.
        on_progress: Called with (rows done, rows), also while another process makes the corpus.
        on_message: Called with a sentence that the user should see.

    Raises:
        UsageError: The cache cannot be written.
        RunError: The disk is full.
    """
    key = corpus_key(parts)
    try:
        if folder is None:
            with tempfile.TemporaryDirectory(prefix="misotune-") as place:  # what is mapped stays readable
                entry = _make(Path(place, key), parts, make_shards, on_progress)
                return CachedCorpus(*open_corpus(entry), key, None, was_there=False)
        folder.mkdir(parents=True, exist_ok=True)
        entry = folder / key
        opened, was_there = _open_or_make_entry(entry, parts, make_shards, patience_s, on_progress, on_message)
        return CachedCorpus(*opened, key, entry, was_there)
    except BrokenCorpusError as error:
        raise RunError(f"{error}, though it was written just now; check the disk") from error
    except OSError as error:
        place = folder or tempfile.gettempdir()
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
            raise UsageError(
                f"{place}: the cache of tokens cannot be written ({error.strerror}); set MISOTUNE_CACHE to another "
                "folder, or to off"
            ) from error
        raise RunError(
            f"{place}: tokens cannot be kept ({error.strerror or error}); free some space, or set MISOTUNE_CACHE to "
            "another folder"
        ) from error


def prune(folder: Path, limit_gib: float, keep: Path) -> None:
    """Deletes the corpora used longest ago until the cache is within its limit.

    Args:
        folder: The cache.
        limit_gib: The limit; `keep` may exceed it.
        keep: The corpus that stays in any case.
    """
    entries = [path for path in folder.iterdir() if _ENTRY.fullmatch(path.name) and path.is_dir()]
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in entries}
    total = sum(sizes.values())
    for path in sorted(entries, key=lambda path: path.stat().st_mtime):
        if total > limit_gib * 2**30 and path != keep:
            with suppress(Timeout), _lock_of(path.with_suffix("")).acquire(blocking=False):
                shutil.rmtree(path, ignore_errors=True)
                total -= sizes[path]


def limit_from_environment() -> float:
    """Returns the cache's limit in GiB: `$MISOTUNE_CACHE_GIB`, or the default.

    Raises:
        UsageError: It is not a number.
    """
    text = os.environ.get("MISOTUNE_CACHE_GIB", "")
    try:
        return float(text) if text else DEFAULT_LIMIT_GIB
    except ValueError as error:
        raise UsageError(f"MISOTUNE_CACHE_GIB={text} is not a number of GiB") from error


def _open_or_make_entry(
    entry: Path,
    parts: Mapping[str, Any],
    make_shards: MakeShards,
    patience_s: float,
    on_progress: Progress,
    on_message: Message,
) -> tuple[_Opened, bool]:
    limit_gib = limit_from_environment()
    lock = _lock_of(entry)
    try:
        opened = _open_or_lock(entry, lock, patience_s, on_progress, on_message)
        if opened or (opened := _open_if_whole(entry)):  # it may have been made since
            return opened, True
        shutil.rmtree(entry, ignore_errors=True)
        _make(entry, parts, make_shards, on_progress)
        prune(entry.parent, limit_gib, keep=entry)
        return _open(entry), False
    finally:
        lock.release()


def _open_or_lock(
    entry: Path, lock: FileLock, patience_s: float, on_progress: Progress, on_message: Message
) -> _Opened | None:
    """Returns the corpus once it is there, or None once this process holds the lock and has to make it."""
    is_broken = waits = False
    makes_from = time.monotonic() + patience_s
    while True:
        if (entry / MANIFEST).is_file() and not is_broken:
            try:
                return _open(entry)
            except BrokenCorpusError as error:
                on_message(f"{error}; the dataset is turned into tokens again")
                is_broken = True
        with suppress(Timeout):
            if time.monotonic() >= makes_from:
                lock.acquire(blocking=False)
                return None
        if not waits and _work_of(entry).exists():
            on_message("another process is turning the dataset into tokens; waiting for it")
            waits = True
        with suppress(OSError, ValueError):
            done, total = json.loads((_work_of(entry) / PROGRESS).read_bytes())
            on_progress(done, total)
        time.sleep(_POLL_S)


def _open_if_whole(entry: Path) -> _Opened | None:
    with suppress(BrokenCorpusError):
        return _open(entry)
    return None


def _make(entry: Path, parts: Mapping[str, Any], make_shards: MakeShards, on_progress: Progress) -> Path:
    work = _work_of(entry)
    whole = work / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir(parents=True)
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        on_progress(done, total)
        if time.monotonic() - last >= _HEARTBEAT_S:
            last = time.monotonic()
            write_whole(work / PROGRESS, json.dumps([done, total]).encode())

    shards = make_shards(work, report)
    write_corpus((shard.read_bytes() for shard in shards), whole, {"key": dict(parts)})
    replace_folder(whole, entry)
    shutil.rmtree(work)
    return entry


def _open(entry: Path) -> _Opened:
    opened = open_corpus(entry)
    with suppress(OSError):  # read only, for instance; pruning then counts from when it was made
        os.utime(entry)
    return opened


def _work_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.partial")


def _lock_of(entry: Path) -> FileLock:
    return FileLock(entry.with_name(f"{entry.name}.lock"))
