"""Processes that work for this one, each with a connection of its own; none of them outlives it.

A connection's end says that the other side is gone, in whichever way: no lock and no queue is shared that a killed
process could leave in disorder. This module is light, so that a process that was just started watches its
connection before it spends seconds on importing torch.
"""

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from misotune.errors import MisotuneError, RunError

# What a process does: given its argument, the jobs as they come, and a way to send messages.
Work = Callable[[Any, Iterator[Any], Callable[[Any], None]], None]

_END_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """The error that ended a process."""

    reason: str
    trace: str


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    process: BaseProcess
    connection: Connection


class Processes:
    """One process for each argument, until `close`; numbered in the order of their starts, from 0.

    They are spawned, so a script that comes here without the command line needs `if __name__ == "__main__":`.

    Args:
        work: What each does; a function that can be imported by its name.
        arguments: Of those that start at once, by the name that errors have for the process.
        cure: What an error says to do.
    """

    def __init__(self, work: Work, arguments: Sequence[tuple[str, Any]] = (), *, cure: str) -> None:
        self._work = work
        self._cure = cure
        self._members: list[_Member] = []
        try:
            for name, argument in arguments:
                self.start(name, argument)
        except BaseException:
            self.close()
            raise

    def start(self, name: str, argument: Any) -> None:
        """Starts one more."""
        self._members.append(_start(name, self._work, argument))

    def send(self, number: int, job: Any) -> None:
        """Gives a process its next job; one that waits for none may block this process.

        Raises:
            RunError: It is gone.
        """
        try:
            self._members[number].connection.send(job)
        except OSError as error:
            raise self._gone(self._members[number]) from error

    def receive(self) -> list[tuple[int, Any]]:
        """Returns messages and the numbers of the processes that sent them, as soon as there is one.

        Raises:
            RunError: A process failed, or is gone.
        """
        ready = set(wait([member.connection for member in self._members]))
        return [(i, self._message(member)) for i, member in enumerate(self._members) if member.connection in ready]

    def receive_from(self, number: int) -> Any:
        """Returns the next message of a process, as soon as it is there.

        Raises:
            RunError: It failed, or is gone.
        """
        return self._message(self._members[number])

    def close(self) -> None:
        """Ends all, whatever they are doing."""
        for member in self._members:
            member.process.terminate()
        for member in self._members:
            member.process.join(_END_TIMEOUT_S)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.connection.close()
        self._members.clear()

    def _message(self, member: _Member) -> Any:
        try:
            message = member.connection.recv()
        except (EOFError, OSError) as error:
            raise self._gone(member) from error
        if isinstance(message, _Failure):
            found = RunError(f"{member.name}: {message.reason}; {self._cure}")
            found.add_note(message.trace)
            raise found
        return message

    def _gone(self, member: _Member) -> RunError:
        member.process.join(_END_TIMEOUT_S)
        code = member.process.exitcode
        if code is None or code >= 0:
            reason = f"ended with exit code {code}"
        else:
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            reason = f"was killed by {signal.Signals(-code).name}{memory}"
        return RunError(f"{member.name} {reason}; {self._cure}")


def _start(name: str, work: Work, argument: Any) -> _Member:
    # Spawned, not forked: a fork cannot use CUDA, and would copy the locks of this process's threads.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    # The argument travels as bytes: reading it imports `work`'s module.
    process = context.Process(target=_run, args=(there, pickle.dumps((work, argument))), daemon=True)
    resource_tracker.ensure_running()  # else `start` does it, and lets interrupts through again
    with _interrupts_held():  # the process inherits that Ctrl-C is not for it: this one ends it
        process.start()
    there.close()  # else this process would keep the connection open that tells it of the other's end
    return _Member(name, process, here)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds SIGINT back; it arrives when the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(connection: Connection, work: bytes) -> None:
    """What a process does until the one that started it closes the connection, or is gone."""
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def take_in() -> None:
        try:
            while True:
                jobs.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    def send(message: Any) -> None:
        try:
            connection.send(message)
        except OSError:
            os._exit(0)

    threading.Thread(target=take_in, daemon=True).start()
    try:
        function, argument = pickle.loads(work)
        function(argument, iter(jobs.get, None), send)
    except Exception as error:  # noqa: BLE001 - the other process raises it
        send(_Failure(_reason(error), f"in a process of its own:\n{traceback.format_exc()}"))


def _reason(error: Exception) -> str:
    if isinstance(error, MisotuneError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
