"""A rank's side towards the process that started it: it ends with it, and hands its error to it.

Where torchrun, srun or DeepSpeed's launcher started the rank, nothing of this happens. This module is light: the
command line imports it at its start.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

# Set by the parent: its process id, and the folder for errors.
PARENT = "MISOTUNE_PARENT"
FOLDER = "MISOTUNE_RANK_FOLDER"

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class HandedError:
    """Why a rank ended.

    Attributes:
        message: One line for the user, or None where nobody foresaw the error.
        exit_code: The rank's exit code.
        trace: The traceback of an error that nobody foresaw.
    """

    message: str | None
    exit_code: int
    trace: str | None = None


def has_parent() -> bool:
    """True in a rank that `misotune train` started."""
    return FOLDER in os.environ


def rank_name() -> str:
    """Returns `rank N: ` in a rank that is not the main process, else nothing: what an error is printed behind."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"rank {rank}: "


def follow_parent() -> None:
    """Makes this rank stop, as at SIGTERM, when its parent dies without a word; where the system is Linux."""
    parent = os.environ.pop(PARENT, None)
    if parent is None or not has_parent():
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != int(parent):  # it was faster
            sys.exit(128 + signal.SIGTERM)


def hand_over(message: str, exit_code: int) -> bool:
    """Gives an error to the parent, which prints it once; False without a parent."""
    if not has_parent():
        return False
    _write(HandedError(message, exit_code))
    return True


def hand_over_trace(error: Exception) -> bool:
    """Gives an error that nobody foresaw to the parent, which shows that of the rank that failed first."""
    if not has_parent():
        return False
    _write(HandedError(None, 1, "".join(traceback.format_exception(error))))
    return True


def read_handed(folder: Path, rank: int) -> HandedError | None:
    """Returns what a rank handed over; None: nothing."""
    try:
        values = json.loads(_file_of(folder, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return HandedError(**values)


def _write(error: HandedError) -> None:
    folder, rank = Path(os.environ[FOLDER]), int(os.environ["RANK"])
    values = {"message": error.message, "exit_code": error.exit_code, "trace": error.trace}
    beside = folder / f"rank-{rank}.part"
    beside.write_text(json.dumps(values), encoding="utf-8")
    beside.replace(_file_of(folder, rank))


def _file_of(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"
