"""A run that stands still says where: every rank's stack, and which ranks are missing."""

import contextlib
import faulthandler
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from misotune.training.ranks import child
from misotune.training.ranks.board import Board, Standing
from misotune.training.ranks.preflight import lengthen_timeouts
from misotune.training.ranks.standstill import describe_standstill
from misotune.training.ranks.store import Place, open_store, store_address, this_place, within

# Outside of steps, a process that reads or writes this much gets further: it loads or saves.
_IO_BYTES = 2**20
_LONGEST_BEAT_S = 5.0
# For stacks to reach a disk that may be what hangs, and for other ranks to show where they stand.
_GRACE_S = 15.0
_STORE_S = 60.0
# For what was said to be read.
_FAREWELL_S = 2.0
_watches = itertools.count()


class Watchdog(TrainerCallback):
    """Watches that the run goes on, as a context around all of it, and ends it on every rank when it stands still.

    A rank gets further with each micro-batch, step, log and save. Outside of steps (loading, saving) it gets further
    too while its process reads or writes files, as the kernel counts it, so that no disk is too slow; a phase that
    does neither can call `mark`. When a rank has got no further for `timeout_minutes`, and none of the others has
    either, all of them write their stacks and exit with code 1, and the lowest one says what was seen. A rank that is
    stopped, dead or out of reach cannot: it is named.

    One process alone is watched too. Time during which the process itself was stopped does not count.

    Args:
        folder: Where stacks are written: `rank-N.txt`.
        timeout_minutes: Minutes without progress after which the run is ended.
        on_stop: Called, on the rank that speaks, with the message that the run ends with.
        place: Which rank this is; None: as the launcher says.
        open_notes: Connects to the store; None: the launcher's.
        leave: Ends the process, with an exit code; nothing else can, with the main thread in a collective.
    """

    def __init__(
        self,
        folder: Path,
        timeout_minutes: float,
        *,
        on_stop: Callable[[str], None] | None = None,
        place: Place | None = None,
        open_notes: Callable[[], PrefixStore] | None = None,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.folder = folder
        self.timeout_s = 60 * timeout_minutes
        self.place = place or this_place()
        self._on_stop = on_stop
        self._leave = leave
        self._beat_s = min(_LONGEST_BEAT_S, self.timeout_s / 20)
        self._grace_s = min(_GRACE_S, max(2.0, self.timeout_s / 2))
        self._main_thread = threading.get_ident()
        self._marks = self._batches = 0
        self._phase, self._is_in_step = "starting", False
        self._idle_s = 0.0
        self._standing = Standing(self.place.rank, self.place.host)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="misotune-watchdog")
        self._board: Board | None = None
        if self.place.world_size > 1:
            # All ranks of a process's n-th run meet at the same notes.
            prefix = f"watch-{next(_watches)}"
            notes = open_notes or (lambda: open_store(prefix, limit_s=_STORE_S))
            self._board = Board(notes, self._my_standing, self.place.world_size, self._beat_s)

    def __enter__(self) -> Self:
        if self._board:
            self._board.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()
        if self._board:
            faulthandler.cancel_dump_traceback_later()
            self._standing = replace(self._standing, has_left=True)
            self._board.close(limit_s=2.0)

    def mark(self) -> None:
        """Says that this rank got further."""
        self._marks += 1

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Names what happens outside of steps, for the message: `with watchdog.during("loading the model")`."""
        before = self._phase, self._is_in_step
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(*before)

    def observe(self, batch: Mapping[str, Any], losses: torch.Tensor) -> None:
        """Called when a micro-batch went through the model."""
        self._batches += 1
        self.mark()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called when the model stands, on its devices."""
        if self._board:
            lengthen_timeouts()  # of the groups that DeepSpeed made since
        self._enter("before the first step")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called before a step's first micro-batch."""
        self._enter(f"step {state.global_step + 1} of {state.max_steps}", is_in_step=True)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after the backward of each micro-batch but a step's last."""
        self.mark()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called when the step's gradient is there."""
        self.mark()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called after each optimizer step; logging and saving follow."""
        self._enter(f"after step {state.global_step} of {state.max_steps}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called at a line of metrics."""
        self.mark()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called when a checkpoint's files are written."""
        self.mark()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after the last step; the final model is saved then."""
        self._enter("finishing")

    def _enter(self, phase: str, is_in_step: bool = False) -> None:
        self._phase, self._is_in_step = phase, is_in_step
        self.mark()

    def _my_standing(self) -> Standing:
        return replace(
            self._standing, marks=self._marks, batches=self._batches, phase=self._phase, idle_s=round(self._idle_s, 1)
        )

    def _watch(self) -> None:
        """Runs in a thread: counts the time without progress, and ends the run."""
        marks, moved, last = self._marks, _io_bytes(), time.monotonic()
        while not self._ends.wait(self._beat_s):
            now = time.monotonic()
            # A process that was itself stopped, or a machine asleep, has not waited for anybody.
            passed, last = min(now - last, 3 * self._beat_s), now
            io = _io_bytes()
            if self._marks != marks or (not self._is_in_step and io - moved >= _IO_BYTES):
                marks, moved, self._idle_s = self._marks, io, 0.0
            else:
                moved = io if self._is_in_step else moved
                self._idle_s += passed
            if self._is_over():
                self._end()
                return

    def _is_over(self) -> bool:
        board = self._board
        if board is None:
            return self._idle_s > self.timeout_s
        # Called from C, without Python's lock: the only word of a main thread that never gives that lock back.
        faulthandler.dump_traceback_later(self.timeout_s, file=2)
        if board.alarm is not None:
            return True
        board.is_reading = self._idle_s > self.timeout_s / 2
        if not board.is_reading:
            board.silent_s.clear()
        return self._idle_s > self.timeout_s and not any(
            standing.idle_s < self.timeout_s
            and not standing.has_left
            and board.silent_s.get(rank, 0.0) < self.timeout_s / 2
            for rank, standing in list(board.others.items())
        )

    def _end(self) -> None:
        """Ends this process, after all ranks have shown where they stand; nothing in here may wait for long."""
        if self._board:
            faulthandler.cancel_dump_traceback_later()
        where, path = _where(self._main_thread), self.folder / f"rank-{self.place.rank}.txt"
        try:
            within(self._grace_s, lambda: _write_stacks(path))
            stacks = str(path)
        except (OSError, TimeoutError) as error:
            stacks = f"not written: {error}"
        self._standing = replace(self._standing, where=where, stacks=stacks)
        if self._board is None:
            self._speak(self._message([]))
        elif not self._end_together(self._board):
            # The store is on a host that is out of reach, most likely with a rank that all wait for.
            self._speak(self._message([], lost_store=store_address()), is_heard=self.place.local_rank <= 1)
        self._leave(1)

    def _end_together(self, board: Board) -> bool:
        """Lets the lowest rank that can speak say what was seen; False where the store does not answer."""
        board.raise_alarm()
        if not _wait(lambda: board.alarm is not None, self._grace_s):
            return False
        others = [rank for rank in range(self.place.world_size) if rank != self.place.rank]
        _wait(lambda: board.is_lost or all(_has_ended(board.others.get(rank)) for rank in others), self._grace_s)
        if not any(_has_ended(board.others.get(rank)) for rank in others if rank < self.place.rank):
            message = self._message(list(board.others.values()))
            board.say(message)
            self._speak(message)
            time.sleep(_FAREWELL_S)  # rank 0 may host the store, and the others have still to read
            return True
        if not _wait(lambda: board.words is not None, self._grace_s) or board.words is None:
            return False
        self._speak(board.words, is_heard=False)
        return True

    def _message(self, others: list[Standing], lost_store: str | None = None) -> str:
        return describe_standstill(
            [self._my_standing(), *others],
            world_size=self.place.world_size,
            timeout_s=self.timeout_s,
            folder=self.folder,
            lost_store=lost_store,
        )

    def _speak(self, message: str, *, is_heard: bool = True) -> None:
        """Says what the run ends with: to the parent, which hears it of all ranks and says it once, or to the user."""
        on_stop = self._on_stop
        if not child.hand_over(message, 1) and is_heard:
            # Not by sys.stderr, whose lock the main thread may hold.
            os.write(2, f"{child.rank_name()}error: {message}\n".encode())
        if is_heard and on_stop:
            with contextlib.suppress(Exception):
                within(_FAREWELL_S, lambda: on_stop(message))


def _has_ended(standing: Standing | None) -> bool:
    return standing is not None and (standing.has_left or standing.stacks is not None)


def _wait(condition: Callable[[], bool], limit_s: float) -> bool:
    """Returns whether the condition came true in time."""
    deadline = time.monotonic() + limit_s
    while not (is_true := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_true


def _write_stacks(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)


def _where(thread: int) -> str:
    """Returns the line of code at which a thread stands."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "nowhere: its thread has ended"
    path = Path(frame.f_code.co_filename)
    return f"{'/'.join(path.parts[-3:])}:{frame.f_lineno} in {frame.f_code.co_name}"


def _io_bytes() -> int:
    """Returns the bytes that this process has read and written so far; 0 where the kernel does not tell."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    counts = dict(line.split(": ") for line in lines)
    return int(counts["rchar"]) + int(counts["wchar"]) + int(counts["read_bytes"])
