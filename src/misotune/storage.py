"""Files and folders that are whole when they are there: hashes, and folders that take their place in one step."""

import ctypes
import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from misotune.errors import RunError, UsageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NUM_TRIES = 10


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside its place and gives it its name last; several processes may do so at once."""
    written = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")
    with written.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    written.replace(path)


def check_own_folder(folder: Path, mark: str, what: str) -> None:
    """Makes sure that a folder may be written: it is free or empty, or holds an older one of its kind to be replaced.

    Args:
        folder: The folder, as the user named it with `--out`.
        mark: The file that every folder of this kind holds.
        what: What the folder holds, in words.

    Raises:
        UsageError: `folder` is a file, holds something else, or is the working directory.
    """
    if not folder.name:
        # It is exchanged with a new one, and whoever stands in it would be left standing in the old one.
        raise UsageError(f"{folder}: the working directory cannot be replaced; name a folder in it with --out")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise UsageError(f"{folder}: holds files that are no {what}; name another folder with --out")


@contextmanager
def whole_folder(folder: Path, what: str) -> Iterator[Path]:
    """Gives an empty folder to write into, which takes the place of `folder` when all is written.

    When an error ends the writing, nothing of it stays and `folder` is as it was.

    Args:
        folder: Its place; what is there is replaced: see `check_own_folder`.
        what: What the folder holds, in words.

    Raises:
        RunError: The folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, folder)
    except OSError as error:
        raise RunError(f"{folder}: the {what} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(written: Path, folder: Path) -> None:
    """Puts a folder that was written beside its place there, once its files have reached the disk.

    What was in its place is exchanged with it in one step and then removed: a process killed at any moment leaves
    the old folder or the new one. Where the file system cannot exchange, the old one is renamed to `.NAME.old`
    first, and a process killed just then leaves it there, for `recover_folder` to bring back.
    """
    recover_folder(folder)
    sync_folder(written)
    if not folder.exists():
        written.rename(folder)
    elif not _exchange(written, folder):
        _replace_by_two_renames(written, folder)
    _sync(folder.parent)
    # What is being removed gets a name that nothing recovers, since it may stay as a half. After an exchange that is
    # `written`, and the `.NAME.old` of a writer that was killed where it could not exchange (another kernel or host).
    gone = folder.with_name(f".{folder.name}.gone")
    _remove(gone)
    for old in (written, _old_of(folder)):
        if old.exists():
            old.rename(gone)
            _remove(gone)


def sync_folder(folder: Path) -> None:
    """Waits until a folder's files have reached the disk, as far as this machine wrote them."""
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            _sync(path)
    _sync(folder)


def recover_folder(folder: Path) -> None:
    """Brings back the old folder that a `replace_folder` had moved away when it was killed.

    To be called before a folder that `replace_folder` writes is read.
    """
    old = _old_of(folder)
    if not folder.exists() and old.is_dir():
        try:
            old.rename(folder)
        except OSError:  # another process was faster, with this one or with the new one
            if not folder.exists():
                raise


def _old_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two paths in one step; False where this is not to be had."""
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTSUP):
        return False  # an old kernel, or a file system without it
    raise OSError(number, os.strerror(number), str(other))


@cache
def _renameat2() -> Any:
    """Linux's call that exchanges two paths, None elsewhere; Python's os module does not offer it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function


def _replace_by_two_renames(written: Path, folder: Path) -> None:
    old = _old_of(folder)
    _remove(old)
    for tries_left in reversed(range(_NUM_TRIES)):
        try:
            folder.rename(old)
            written.rename(folder)
        except OSError:  # a reader has brought the old one back in between
            if not tries_left:
                raise
        else:
            return


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
