"""From rows to shards of token ids, in worker processes; a shard that is there already is not made again."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Literal

from misotune.data.dataset import Dataset, open_dataset
from misotune.errors import LayoutError, RunError
from misotune.layout import ChatTemplate, Chunking, EncodedSample, encode_sample, join_samples
from misotune.samples import Mode, Sample, select_inputs
from misotune.storage import write_whole
from misotune.training.encoded import RowAccount, shard_bytes

SHARD_ROWS = 512

# Two interpreters take about four seconds to start; one does a few thousand rows in that time.
_ROWS_BEFORE_WORKERS = 8192
# Each holds torch: 0.2 GiB of its own.
_MOST_WORKERS = 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a sample may be, in tokens; see the recipe's section `data`."""

    max_length: int
    too_long: Literal["drop", "cut"]
    max_sample_length: int | None = None


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Turns rows of a prepared dataset into encoded samples.

    Attributes:
        template: The model's chat template.
        mode: How inputs are chosen from a row.
        roles: For para and flat, the roles to include.
        limits: How long a sample may be.
        chunking: For succ, how inputs are cut: prefixes of chunks count as tokens too.
    """

    template: ChatTemplate
    mode: Mode
    roles: Collection[str]
    limits: Limits
    chunking: Chunking | None

    def encode(self, rows: Sequence[Sample], start: int, stop: int) -> tuple[list[EncodedSample], RowAccount]:
        """Returns the samples of rows `start` to `stop`, and what became of the others.

        Rows of one chunk become one sample; they belong to the call whose range the first of them is in.
        """
        account = RowAccount(rows=stop - start)
        samples = [s for group in _groups(rows, start, stop) for s in self._encode_group(group, account)]
        return samples, account

    def _encode_group(self, group: Sequence[Sample], account: RowAccount) -> Iterator[EncodedSample]:
        encoded: list[EncodedSample] = []
        for row in group:
            for sample in select_inputs(row, self.mode, self.roles):
                try:
                    encoded.append(encode_sample(sample, self.template))
                except LayoutError as error:
                    account.drop(str(error), sample.id)
        if len(group) > 1 and len(encoded) > 1:
            yield from self._join(encoded, account)
            return
        for sample in encoded:
            fitted = self._fit(sample, "a pair of input and output", "an input")
            if isinstance(fitted, str):
                account.drop(fitted, sample.id)
            else:
                account.cut += fitted is not sample
                yield fitted

    def _join(self, members: Sequence[EncodedSample], account: RowAccount) -> Iterator[EncodedSample]:
        """Yields the sample of a chunk, or counts each of its rows as dropped."""
        try:
            joined = join_samples(members, self.template.tokenizer.bos_token_id)
        except LayoutError as error:
            account.drop(str(error), members[0].id, len(members))
            return
        fitted = self._fit(joined, "a chunk of rows", "the first input of a chunk")
        if isinstance(fitted, str):
            account.drop(fitted, members[0].id, len(members))
            return
        if fitted is not joined:
            account.cut += 1
            # A chunk is cut behind a whole response: it loses the rows that follow.
            if lost := members[len(fitted.starts) :]:
                account.drop(f"cut off a chunk of rows: {self._longer('it')}", lost[0].id, len(lost))
                members = members[: len(fitted.starts)]
                fitted = replace(fitted, id="+".join(member.id for member in members))
        account.chunks += 1
        account.joined += len(members)
        yield fitted

    def _fit(self, encoded: EncodedSample, pair: str, input_name: str) -> EncodedSample | str:
        """Returns the sample within the limits, or why it is dropped.

        Args:
            encoded: The sample.
            pair: What to call it in a reason.
            input_name: What to call its input there.
        """
        limits = self.limits
        room = self.chunking.room(encoded) if self.chunking else 0
        if encoded.longest_pair + room > limits.max_length:
            if limits.too_long == "drop":
                return self._longer(pair)
            fitted = encoded.cut(limits.max_length - room)
            if fitted is None:
                return self._longer(input_name)
            encoded = fitted
        if limits.max_sample_length is not None and encoded.num_tokens + room > limits.max_sample_length:
            return (
                f"all inputs and the output are longer than data.max_sample_length ({limits.max_sample_length} tokens)"
            )
        return encoded

    def _longer(self, what: str) -> str:
        return f"{what} is longer than data.max_length ({self.limits.max_length} tokens)"


def _groups(rows: Sequence[Sample], start: int, stop: int) -> Iterator[list[Sample]]:
    """Yields the rows that begin in a range: each alone, or with the others of its chunk, which follow it."""
    at = start
    if 0 < start < stop and (chunk := rows[start - 1].chunk):
        while at < stop and rows[at].chunk == chunk:
            at += 1
    while at < stop:
        group = [rows[at]]
        at += 1
        while group[0].chunk and at < len(rows) and (row := rows[at]).chunk == group[0].chunk:
            group.append(row)
            at += 1
        yield group


def encode_shards(
    rows: Dataset,
    encoder: RowEncoder,
    folder: Path,
    *,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> list[Path]:
    """Writes the shards of a dataset into a folder, those apart that are there whole, and returns them in order.

    Args:
        rows: The dataset.
        encoder: Turns rows into samples.
        folder: Where shards lie; of a build that was cut off they are used.
        workers: Processes; 1: this one. None: one for each processor, or this one where rows are few.
        on_progress: Called with (rows done, rows).

    Raises:
        DataError: A row is wrong.
        RunError: A worker was killed, or the dataset was replaced meanwhile.
    """
    num_rows = len(rows)
    numbers = range(-(-num_rows // SHARD_ROWS))
    job = _Job(rows.path, rows.sha256, num_rows, encoder, folder, SHARD_ROWS)
    shards = {number: shard for number in numbers if (shard := job.find(number))}
    todo = [number for number in numbers if number not in shards]
    done = sum(job.rows_of(number) for number in shards)

    def report() -> None:
        if on_progress:
            on_progress(done, num_rows)

    report()
    if workers is None:
        few = len(todo) * SHARD_ROWS < _ROWS_BEFORE_WORKERS
        workers = 1 if few else min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    made = _make_in_workers(job, todo, workers) if workers > 1 and len(todo) > 1 else _make_here(job, rows, todo)
    with closing(made):  # interrupted here, the workers end at once
        for number, shard in made:
            shards[number] = shard
            done += job.rows_of(number)
            report()
    return [shards[number] for number in numbers]


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to make any shard."""

    path: Path
    sha256: str
    num_rows: int
    encoder: RowEncoder
    folder: Path
    shard_rows: int

    def rows_of(self, number: int) -> int:
        """Returns how many rows a shard has."""
        return min(self.shard_rows, self.num_rows - number * self.shard_rows)

    def find(self, number: int) -> Path | None:
        """Returns a shard whose content is what its name says; others of that name are removed."""
        for path in self.folder.glob(f"{self._name_of(number)}-*.npz"):
            if path.stem.endswith(f"-{_hash(path.read_bytes())}"):
                return path
            path.unlink()
        return None

    def make(self, rows: Sequence[Sample], number: int) -> Path:
        """Writes a shard."""
        start = number * self.shard_rows
        content = shard_bytes(*self.encoder.encode(rows, start, start + self.rows_of(number)))
        path = self.folder / f"{self._name_of(number)}-{_hash(content)}.npz"
        write_whole(path, content)
        return path

    def _name_of(self, number: int) -> str:
        start = number * self.shard_rows
        return f"rows-{start}-{start + self.rows_of(number)}"


def _make_here(job: _Job, rows: Dataset, numbers: Sequence[int]) -> Generator[tuple[int, Path], None, None]:
    yield from ((number, job.make(rows, number)) for number in numbers)


def _make_in_workers(job: _Job, numbers: Sequence[int], workers: int) -> Generator[tuple[int, Path], None, None]:
    others = set(multiprocessing.active_children())
    # Spawned, not forked: this process holds torch, the tokenizer's threads and perhaps a GPU.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(workers, len(numbers)), context, initializer=_start_worker, initargs=(job,))
    try:
        with _without_interrupts():
            futures = {executor.submit(_make_shard, number): number for number in numbers}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "a process that tokenises was killed (out of memory?); start again: the rows done so far are kept"
        ) from error
    except BaseException:
        # Not even the shards under way are waited for: each is written beside its place, and named last.
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Puts signals off while processes are started: one that is half started ends with a traceback of its own.

    Those started inside never get SIGINT, not even while they import: this process is told, and ends them.
    """
    resource_tracker.ensure_running()  # starting it would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    arrived: list[int] = []
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    try:
        # The mask is this thread's: another takes the signal, and Python still calls its handler here.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                if callable(handler := signal.getsignal(number)):
                    handlers[number] = handler
                    signal.signal(number, lambda number, frame: arrived.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in arrived[:1]:
            handlers[number](number, None)


_worker: tuple[_Job, Dataset | None] | None = None


def _start_worker(job: _Job) -> None:
    """Runs first in each worker."""
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes run this"

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _worker = (job, None)


def _make_shard(number: int) -> Path:
    global _worker
    assert _worker is not None, "the worker was started"
    job, rows = _worker
    if rows is None:  # not when the worker starts: an error there would only end it
        rows = open_dataset(job.path, verify=False)
        if rows.sha256 != job.sha256:
            raise RunError(f"{job.path}: was replaced while it was turned into tokens; start again")
        _worker = (job, rows)
    return job.make(rows, number)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
