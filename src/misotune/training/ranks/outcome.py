"""Why ranks ended: from exit codes, and from what they handed over, to one readable reason."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from misotune.training.ranks.child import read_handed

_TAIL_LINES = 30


@dataclass(frozen=True, slots=True)
class Ended:
    """A rank that ended.

    Attributes:
        rank: Its number.
        pid: Its process.
        code: Its exit code; below 0: the signal that killed it.
        by_us: Whether its parent killed it, after another rank had failed.
    """

    rank: int
    pid: int
    code: int
    by_us: bool = False

    def what(self) -> str:
        """Returns in words how it ended."""
        who = f"rank {self.rank} (process {self.pid})"
        return (
            f"{who} ended with exit code {self.code}" if self.code > 0 else f"{who} was killed by {_name(-self.code)}"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a machine's ranks ended.

    Attributes:
        exit_code: For the parent to end with.
        message: One line for the user; empty: all went well.
        details: A traceback or a log's last lines, to be shown before; empty where the message says all.
        is_explained: Whether the message is the rank's own.
    """

    exit_code: int = 0
    message: str = ""
    details: str = ""
    is_explained: bool = False


def judge(
    ended: Sequence[Ended],
    folder: Path,
    *,
    handed_on: Sequence[int],
    elsewhere: str,
    num_killed: int | None,
    go_on: str,
) -> Outcome:
    """Returns the reason that ranks ended.

    Args:
        ended: The ranks, in the order in which they ended.
        folder: Where ranks left errors and logs.
        handed_on: Signals that the parent got and handed on.
        elsewhere: What failed on another machine before anything did here, or empty.
        num_killed: Processes that the kernel killed for want of memory meanwhile; None: it does not tell.
        go_on: What the user does next.
    """
    failed = [end for end in ended if end.code and not end.by_us]
    if not failed:
        return _failed_elsewhere(elsewhere, go_on) if elsewhere else Outcome()
    # A rank that something killed is why the others failed, even if they were seen first.
    killed = [] if len(handed_on) > 1 else [end for end in failed if end.code < 0 and -end.code not in handed_on]
    cause = min(killed or failed, key=lambda end: _has_no_reason(end, folder))
    handed = read_handed(folder, cause.rank)
    if not killed and handed and handed.message:
        is_shared = cause.rank == 0 or handed == read_handed(folder, 0)
        message = handed.message if is_shared else f"rank {cause.rank}: {handed.message}"
        return Outcome(handed.exit_code, message, is_explained=True)
    if handed_on and cause.code in (128 + handed_on[-1], -handed_on[-1], -signal.SIGKILL):
        return Outcome(128 + handed_on[0], _stopped(handed_on, cause, go_on), is_explained=True)
    if elsewhere:
        return _failed_elsewhere(elsewhere, go_on)
    if cause.code < 0:
        return Outcome(1, f"{_killed(cause, num_killed, has_others=len(ended) > 1)}; {go_on}")
    return Outcome(cause.code, cause.what(), handed.trace if handed and handed.trace else _log_tail(folder, cause.rank))


def memory_kills() -> int | None:
    """Returns how many processes Linux has killed for want of memory since it started; None: it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def log_of(folder: Path, rank: int) -> Path:
    """Returns where all that a rank printed is kept; rank 0 prints for the user instead."""
    return folder / f"rank-{rank}.txt"


def _has_no_reason(end: Ended, folder: Path) -> bool:
    handed = read_handed(folder, end.rank)
    return handed is None or handed.message is None


def _failed_elsewhere(elsewhere: str, go_on: str) -> Outcome:
    return Outcome(1, f"{elsewhere}; the ranks here were ended; {go_on}", is_explained=True)


def _stopped(handed_on: Sequence[int], cause: Ended, go_on: str) -> str:
    first = _name(handed_on[0])
    if len(handed_on) > 1:
        return f"stopped at once by a second signal ({first} came first); {go_on}"
    if cause.code < 0:
        return f"stopped by {first} while the ranks were starting: nothing was trained; {go_on}"
    return f"stopped by {first}; {go_on}"


def _killed(end: Ended, num_killed: int | None, *, has_others: bool) -> str:
    message = end.what()
    if end.code == -signal.SIGKILL and num_killed:
        message += (
            f": out of memory? The kernel killed {num_killed} process(es) here for want of memory meanwhile; look "
            "at the memory in the plan (--plan), lower train.tokens_per_micro_batch, or start fewer with --nproc"
        )
    elif end.code == -signal.SIGKILL and num_killed == 0:
        message += " (not for want of memory: the kernel counts no such kill)"
    return f"{message}; the other ranks were ended" if has_others else message


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _log_tail(folder: Path, rank: int) -> str:
    try:
        lines = log_of(folder, rank).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_TAIL_LINES:])
