"""One process at a time writes a run folder."""

import errno
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from misotune.errors import UsageError

# The kernel or the file system has no such locks: some network file systems, and those mounted with `nolock`.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock_path(run: Path) -> Path:
    """Returns a run's lock file: beside the run folder, which --overwrite deletes."""
    return run.with_name(f".{run.name}.lock")


@contextmanager
def lock_run(run: Path, on_message: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds a run folder for this process, to the end of the block.

    The kernel takes the lock back from a process that died, however it did; the file may stay then, and means nothing
    by itself. Over NFS the server must know locks (NFSv4 does); where there are none, the user is told so, and the
    run goes on without.

    Args:
        run: The run folder; it need not be there yet.
        on_message: Told when the file system has no locks.

    Raises:
        UsageError: Another process holds it; the message says which.
    """
    path = lock_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(run, path, on_message)
    try:
        holder = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(run: Path, path: Path, on_message: Callable[[str], None] | None) -> int:
    """Returns the descriptor of the lock file, locked; the lock is as long there as the descriptor is open."""
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(descriptor)
            os.close(descriptor)
            raise UsageError(f"{run} is in use by {holder}; wait for it, or train another with name=OTHER") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            if on_message:
                on_message(f"{path.parent}: its file system has no locks; see to it that no other process trains {run}")
            return descriptor
        # The last holder may have removed the file between the two calls above: then this lock guards nothing.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


def _read(descriptor: int) -> str:
    """Returns who holds a lock, in words."""
    try:
        holder: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, OSError):  # it has not written its name yet
        return "another process"
