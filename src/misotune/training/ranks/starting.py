"""The parent of a machine's ranks: it starts them, hands signals on, and says once why they ended.

torch's elastic agent would start them too, but it answers a signal, and the first rank that ends, by ending all others
within 30 seconds, be they saving or not (a limit that only the newest torch lets one move), and it reports a failure by
a table of its own. Here nothing but a rank's failure ends other ranks. `torchrun -m misotune train RECIPE` works all
the same.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from misotune.errors import RunError
from misotune.training.ranks.child import FOLDER, PARENT
from misotune.training.ranks.launch import Machines
from misotune.training.ranks.nodes import NodeLink
from misotune.training.ranks.outcome import Ended, Outcome, judge, log_of, memory_kills

# After a rank has failed, the others have this long to end by themselves, each with its own reason.
GRACE_S = 25.0
_POLL_S = 0.1
# The same signal may come several times, by the terminal and by a scheduler: within this time it is one.
SAME_SIGNAL_S = 2.0
_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank that was started."""

    number: int
    process: subprocess.Popen[bytes]


def open_store(machines: Machines) -> Any:
    """Returns the store at which ranks meet, on machine 0; the parent keeps it, so that no rank's end closes it.

    Raises:
        RunError: The port is taken.
    """
    from torch.distributed import DistNetworkError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        return TCPStore(
            machines.host, machines.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
    except (DistNetworkError, RuntimeError) as error:
        raise RunError(
            f"port {machines.port} cannot be opened ({str(error).splitlines()[0]}); choose another: --master "
            f"{machines.host}:PORT"
        ) from error


def run_ranks(
    machines: Machines,
    arguments: Sequence[str],
    *,
    port: int,
    link: NodeLink | None,
    announce: Callable[[str], None],
    go_on: Callable[[], str],
) -> Outcome:
    """Runs `misotune ARGUMENTS` as this machine's ranks until all have ended.

    Args:
        machines: The job's machines.
        arguments: What each rank is called with.
        port: Port of the store on machine 0.
        link: To the parents on other machines; None: there are none.
        announce: Called with the command, as it could be typed.
        go_on: Returns what the user does next after a failure.
    """
    command = [sys.executable, "-m", "misotune", *arguments]
    common = common_environment(machines, port)
    announce(typed_command(machines, common, command))
    killed_before = memory_kills()
    folder = Path(tempfile.mkdtemp(prefix="misotune-ranks-"))
    ranks: list[Rank] = []
    try:
        with collected_signals() as signals:
            for local in range(machines.num_local):
                ranks += [_start(machines, local, command, common, folder)]
            ended, handed_on, elsewhere = _watch(ranks, signals, link)
        killed_now = memory_kills()
        outcome = judge(
            ended,
            folder,
            handed_on=handed_on,
            elsewhere=elsewhere,
            num_killed=None if killed_now is None else killed_now - (killed_before or 0),
            go_on=go_on(),
        )
    finally:
        _kill(ranks)  # nothing is left to kill, unless the lines above failed
    has_logs = any(path.stat().st_size for path in folder.glob("*.txt"))
    if not outcome.is_explained and outcome.exit_code and has_logs:
        return replace(outcome, message=f"{outcome.message}; what the other ranks printed is kept in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def common_environment(machines: Machines, port: int) -> dict[str, str]:
    """Returns what all ranks of this machine have in their environment beyond the parent's own."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    common = {
        "WORLD_SIZE": str(machines.world_size),
        "LOCAL_WORLD_SIZE": str(machines.num_local),
        "GROUP_RANK": str(machines.node),
        "MASTER_ADDR": machines.host,
        "MASTER_PORT": str(port),
        # The store is the parent's: rank 0 opens none.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    if "OMP_NUM_THREADS" not in os.environ:
        common["OMP_NUM_THREADS"] = str(max(1, cores // machines.num_local))
    if not torch.cuda.is_available():
        common["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR", "cpu")
    return common


def typed_command(machines: Machines, common: Mapping[str, str], command: Sequence[str]) -> str:
    """Returns in one line what is run how often."""
    first = machines.node * machines.num_local
    numbers = f"RANK={first}..{first + machines.num_local - 1} LOCAL_RANK=0..{machines.num_local - 1}"
    variables = " ".join(f"{name}={value}" for name, value in common.items())
    return f"{numbers} {variables} {shlex.join(command)}"


@contextmanager
def collected_signals() -> Iterator[deque[int]]:
    """Yields the signals that arrive meanwhile; none of them ends this process."""
    arrived: deque[int] = deque()

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    old: dict[int, Any] = {}
    try:
        for number in _HANDED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background
                old[number] = signal.signal(number, note)
        yield arrived
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _start(machines: Machines, local: int, command: Sequence[str], common: Mapping[str, str], folder: Path) -> Rank:
    number = machines.node * machines.num_local + local
    environment = {
        **os.environ,
        **common,
        "RANK": str(number),
        "LOCAL_RANK": str(local),
        PARENT: str(os.getpid()),
        FOLDER: str(folder),
    }
    # One rank talks to the user: what the others print is mostly the same.
    with nullcontext() if number == 0 else log_of(folder, number).open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which hands it on
        )
    return Rank(number, process)


def _watch(ranks: Sequence[Rank], signals: deque[int], link: NodeLink | None) -> tuple[list[Ended], list[int], str]:
    """Waits until all ranks have ended; returns them in this order, signals handed on, and what failed elsewhere."""
    living, ended = list(ranks), list[Ended]()
    to_ranks = SignalsToRanks(living)
    elsewhere = ""
    kill_at: float | None = None
    while living:
        while signals:
            to_ranks.hand_on(signals.popleft())
        is_over = kill_at is not None and time.monotonic() > kill_at
        if is_over:
            _kill(living)
        for rank in list(living):
            if (code := rank.process.poll()) is not None:
                living.remove(rank)
                ended.append(Ended(rank.number, rank.process.pid, code, by_us=is_over and code == -signal.SIGKILL))
                _kill([rank])  # what it started itself
        if kill_at is None:
            failed = next((end for end in ended if end.code), None)
            if link is not None:
                elsewhere = link.tell_failed(failed.what()) if failed else link.failure_elsewhere()
            if failed or elsewhere:
                kill_at = time.monotonic() + GRACE_S
        time.sleep(_POLL_S)
    return ended, to_ranks.handed_on, elsewhere


class SignalsToRanks:
    """Hands signals on: ranks end in order at the first, at once at the second; the third is for one that hangs.

    Args:
        living: The ranks that live, as they are at each signal.
    """

    def __init__(self, living: Sequence[Rank]) -> None:
        self.handed_on: list[int] = []
        self._living = living
        self._last = float("-inf")

    def hand_on(self, number: int) -> None:
        """Sends a signal to all living ranks; a terminal that closes asks for what SIGTERM asks for."""
        number = signal.SIGTERM if number == signal.SIGHUP else number
        if time.monotonic() - self._last > SAME_SIGNAL_S:
            self.handed_on.append(number)
        self._last = time.monotonic()
        for rank in self._living:
            with suppress(ProcessLookupError):
                rank.process.send_signal(signal.SIGKILL if len(self.handed_on) > 2 else number)


def _kill(ranks: Sequence[Rank]) -> None:
    """Ends ranks with all that they started: each has a session, and so a process group, of its own."""
    for rank in ranks:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.process.pid, signal.SIGKILL)
