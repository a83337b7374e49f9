"""Several ranks save one thing: one that cannot write does not leave the others waiting, and nothing half-written."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch

from misotune.errors import RunError
from misotune.training.disk import free_bytes, in_gib
from misotune.training.ranks.launch import is_main_process
from misotune.training.saving.checkpoints import list_checkpoints

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk failed (input/output error)",
    errno.EROFS: "the file system is mounted read-only",
}
_NO_ROOM = "there is no room for it on the disk"
_OF_ROOM = (_NO_ROOM, _REASONS[errno.ENOSPC], _REASONS[errno.EDQUOT])
_PROBE_BYTES = 2**20


class SaveError(RunError):
    """A save failed on some rank; all ranks raise it at the same place."""


@contextmanager
def saving(written: Path, what: str, needed: int) -> Iterator[None]:
    """Does a part of a save on all ranks; when it fails on one, all raise, and what was written is removed.

    All ranks enter it at the same place. The block may talk to other ranks only where no rank can fail before.

    Args:
        written: The folder that is written to, on a disk that all ranks share.
        what: What is saved, for the message: `the checkpoint of step 4`.
        needed: Its size in bytes, for the message.

    Raises:
        SaveError: It failed; the message says why, and how to go on.
    """
    problem: str | None = None
    try:
        yield
    except SaveError:  # all ranks have it already
        raise
    except Exception as error:  # noqa: BLE001 - safetensors, torch and the system each raise their own
        problem = _reason(error, written)
    _agree(problem, written, what, needed)


def check_room(written: Path, what: str, least: int, needed: int) -> None:
    """Refuses, on all ranks, to begin a save for which there is no room.

    Args:
        written: The folder that will be written to.
        what: As for `saving`.
        least: Bytes without which it cannot succeed.
        needed: Its size in bytes, for the message.

    Raises:
        SaveError: There is no room.
    """
    lacks = is_main_process() and free_bytes(written) < least
    _agree(_NO_ROOM if lacks else None, written, what, needed)


@contextmanager
def later_errors(engine: Any) -> Iterator[None]:
    """Lets a DeepSpeed engine's save run to its end on every rank, and raises its first error only then.

    DeepSpeed's ranks wait for one another in the middle of a save: one that raised there would leave the rest waiting
    for a time-out.

    Args:
        engine: The engine; its `checkpoint_engine` is what writes files.
    """
    writer, errors = engine.checkpoint_engine, cast(list[Exception], [])
    save: Callable[..., Any] = writer.save

    def save_or_remember(state_dict: Any, path: str) -> Any:
        if errors:
            return None
        try:
            return save(state_dict, path)
        except Exception as error:  # noqa: BLE001 - as in `saving`
            reason = _reason(error, Path(path).parent)
            errors.append(OSError(reason))
            # DeepSpeed goes on to write small files, which must find room.
            Path(path).unlink(missing_ok=True)
            return None

    writer.save = save_or_remember
    try:
        yield
    finally:
        del writer.save
    if errors:
        raise errors[0]


def gather_objects(value: Any) -> list[Any]:
    """Returns every rank's value, in their order; in a run of one process, this one's."""
    if not _is_joined():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def main_rank_value(value: Any) -> Any:
    """Returns the main rank's value on all ranks."""
    if not _is_joined():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def rank_number() -> int:
    """Returns this process's number among the ranks."""
    return torch.distributed.get_rank() if _is_joined() else 0


def wait_for_all() -> None:
    """Waits until every rank is here."""
    gather_objects(None)


def _agree(problem: str | None, written: Path, what: str, needed: int) -> None:
    problems = {rank: text for rank, text in enumerate(gather_objects(problem)) if text}
    if not problems:
        return
    message = None
    if is_main_process():
        shutil.rmtree(written, ignore_errors=True)
        rank, reason = next(iter(problems.items()))
        where = f" (rank {rank})" if _is_joined() else ""
        how = _how_to_go_on(written, needed if reason in _OF_ROOM else None)
        message = f"{what} could not be saved: {reason}{where}. {how}"
    raise SaveError(main_rank_value(message))


def _how_to_go_on(written: Path, lacking: int | None) -> str:
    """Returns what the user does next; `lacking`: bytes for which there was no room."""
    room, cure = "", "once that is cured"
    if lacking is not None:
        room = f"It needs {in_gib(lacking)}; {in_gib(free_bytes(written))} are free in {written.parent}. "
        cure = "once there is room (train.keep_checkpoints=1 keeps fewer)"
    checkpoints = list_checkpoints(written.parent) or list_checkpoints(written.parent / "checkpoints")
    there = f"{checkpoints[-1].name} is whole" if checkpoints else "There is no earlier checkpoint"
    return f"{room}{there}; {cure}, go on: misotune train RECIPE --resume"


def _reason(error: Exception, folder: Path) -> str:
    """Returns why a write failed, in words; to be called before anything is removed."""
    number = _number_in(error)
    if number is None and not isinstance(error, OSError | RunError):
        number = _number_of_probe(folder)  # torch's writer only says that it failed
    if number in _REASONS:
        return _REASONS[number]
    first_line = next((line for line in str(error).splitlines() if line.strip()), "")
    return first_line if isinstance(error, OSError | RunError) else f"{type(error).__name__}: {first_line}"


def _number_in(error: BaseException | None) -> int | None:
    """Returns the system's error number behind an exception; safetensors has it in its text alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := re.search(r"os error (\d+)", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def _number_of_probe(folder: Path) -> int | None:
    """Returns the error number with which a small file cannot be written, None when it can."""
    while not folder.is_dir():
        folder = folder.parent
    probe = folder / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def _is_joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
