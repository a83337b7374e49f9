"""Signals that ask a run to end: the first ends it in order, a second one at once."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from types import FrameType, TracebackType
from typing import Any, Self

from misotune.errors import MisotuneError, StoppedError
from misotune.runs import SAME_COMMAND, RunFolder
from misotune.training.ranks.launch import is_main_process
from misotune.training.ranks.starting import SAME_SIGNAL_S
from misotune.training.saving.checkpoints import list_checkpoints
from misotune.training.watching.events import has_recorded_stop, record_event

# Slurm's --signal and many cluster scripts send SIGUSR1 before SIGTERM.
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Phase(Enum):
    """Where a run is, which decides what a signal does."""

    STARTING = "before the first step"
    TRAINING = "while steps were trained"
    FINISHING = "after the last step"


class Interruption(KeyboardInterrupt):
    """Raised by the first signal while nothing is trained yet. No `except Exception` of a library may catch it."""


class StopSignals:
    """The signals that a run has received, as a context around all of it.

    Before the first step a signal ends the run at once; while steps are trained it is only noted, for `StopGuard` to
    end the run on all ranks at the same step; after the last step the final model is still written. A second signal
    ends the process at once, whatever it does.

    Handlers of Python run in the main thread, between two of its instructions: not while it waits in a collective
    for a rank that is gone. So a thread of its own listens too. Outside the main thread nothing can be handled, and
    nothing is. A signal that was ignored stays so, as it is for a process in a shell's background.

    Args:
        run: The run folder.
        is_resumed: Whether the run folder is this run's already.
        on_message: Called with a sentence that the user should see; from the listening thread.

    Raises:
        StoppedError: On leaving, when a signal ended the run.
    """

    def __init__(
        self, run: RunFolder, *, is_resumed: bool = False, on_message: Callable[[str], None] | None = None
    ) -> None:
        self.run = run
        self.is_resumed = self.has_folder = is_resumed
        self.phase = Phase.STARTING
        self.number = 0
        self._on_message = on_message if is_main_process() else None
        self._has_raised = False
        self._received_at: float | None = None
        self._old: dict[int, Any] = {}
        self._old_descriptor = -1
        self._tells: socket.socket | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        told, self._tells = socket.socketpair()
        self._tells.setblocking(False)
        self._old_descriptor = signal.set_wakeup_fd(self._tells.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(told,), name="signals", daemon=True).start()
        for number in WATCHED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            if handler is not None:  # None: it was not set by Python, and cannot be put back
                signal.signal(number, handler)
        if self._tells is not None:
            signal.set_wakeup_fd(self._old_descriptor)
            self._tells.close()
        if isinstance(error, Interruption):
            # What was interrupted says nothing to the user.
            raise self._stopped(str(error)) from None
        if self.number and isinstance(error, Exception) and not isinstance(error, MisotuneError):
            # Most likely a rank that had ended already was waited for.
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise self._stopped(
                f"stopped by {self.name} {self.phase.value}, with {type(error).__name__}: {line}; {self.next_command()}"
            ) from error

    @property
    def name(self) -> str:
        """The name of the signal received."""
        return signal.Signals(self.number).name

    def begin_training(self) -> None:
        """Says that the first step begins: from here on a signal is noted only."""
        if self.phase is Phase.STARTING:
            if self.number:  # what it raised was caught on the way
                raise Interruption(self._nothing_trained())
            self.phase = Phase.TRAINING

    def stop(self, number: int, text: str) -> StoppedError:
        """Returns what ends the run for a signal that this rank or another received, and keeps it as an event."""
        self.number = self.number or number
        return self._stopped(f"stopped by {self.name} {text}")

    def next_command(self) -> str:
        """Returns what the user does next."""
        # Before the folder is this run's, it may be that of an earlier one that --overwrite would delete.
        return self.run.next_command() if self.has_folder else SAME_COMMAND

    def own_folder(self) -> None:
        """Says that the run folder is this run's from here on."""
        self.has_folder = True

    def _nothing_trained(self) -> str:
        since = " since the last checkpoint" if self.is_resumed and list_checkpoints(self.run.checkpoints) else ""
        return f"stopped by {self.name} before the first step: nothing was trained{since}; {self.next_command()}"

    def _stopped(self, message: str) -> StoppedError:
        if not has_recorded_stop(self.run):  # by what was left before
            record_event(self.run, "stop", message)
        # Whoever sent SIGUSR1 meant what SIGTERM means: scripts need to know one exit code.
        return StoppedError(message, signal.SIGINT if self.number == signal.SIGINT else signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Called by Python in the main thread."""
        self.number = self.number or number
        if self.phase is Phase.STARTING and not self._has_raised:
            self._has_raised = True  # a repetition must not disturb the cleaning up after the first
            raise Interruption(self._nothing_trained())

    def _listen(self, told: socket.socket) -> None:
        """Runs in a thread until the context is left."""
        with told:
            while numbers := told.recv(64):
                for number in numbers:
                    if number in self._old:
                        self._receive(number)

    def _receive(self, number: int) -> None:
        name = signal.Signals(number).name
        now, before = time.monotonic(), self._received_at
        self._received_at = now
        if before is None:
            if self._on_message is not None and (text := _WHAT_HAPPENS.get(self.phase)):
                with suppress(OSError):  # a terminal that is gone
                    self._on_message(f"{name}: {text}; a second signal stops at once")
        # A terminal or a scheduler sends a signal to every process of a job, and a launcher hands it to its ranks once
        # more: in quick succession they are one.
        elif now - before > SAME_SIGNAL_S:
            with suppress(OSError):
                os.write(2, f"stopped at once by a second signal ({name}); {self.next_command()}\n".encode())
            os._exit(128 + number)


_WHAT_HAPPENS = {
    Phase.TRAINING: "the step is finished and saved, then the run stops",
    Phase.FINISHING: "the last step is done, and the final model is still written",
}
