"""A function over a stream of items in worker processes: in order, with a bounded number of items under way.

`ProcessPoolExecutor` can hang for ever when a worker is killed while its queue is being written (gh-94777), and
its workers outlive a killed parent. Here each worker has a connection of its own, whose end says that the other
side is gone, and chunks go round: no lock is shared.
"""

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

from misotune.errors import RunError

T = TypeVar("T")
R = TypeVar("R")

# A few hundred rows are done before two interpreters have started.
_ITEMS_BEFORE_WORKERS = 256
# A chunk is full at either bound: many small rows, or a few large ones.
_CHUNK_ITEMS = 64
_CHUNK_BYTES = 1 << 20
_CHUNKS_PER_WORKER = 3


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection


def map_in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yields `work(item)` for each item, in order; the same whatever the number of workers.

    Args:
        work: A picklable function.
        items: Read as the results are taken, a few chunks ahead.
        workers: Processes besides this one; with 0 or 1 the work is done in this one.

    Raises:
        RunError: A worker process was killed.
    """
    items = iter(items)
    if workers > 1:
        yield from map(work, islice(items, _ITEMS_BEFORE_WORKERS))
        for item in items:
            yield from _in_workers(work, chain([item], items), workers)
    else:
        yield from map(work, items)


def _in_workers(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    started: list[_Worker] = []
    waiting: deque[_Worker] = deque()
    try:
        for number, chunk in enumerate(_chunks(items)):
            if number < workers:
                started.append(_start(work))
            worker = started[number % workers]
            _send(worker, chunk)
            waiting.append(worker)
            if len(waiting) >= workers * _CHUNKS_PER_WORKER:
                yield from _receive(waiting.popleft())
        while waiting:
            yield from _receive(waiting.popleft())
    finally:
        for worker in started:
            worker.process.terminate()
        for worker in started:
            worker.process.join()
            worker.connection.close()


def _chunks(items: Iterable[Any]) -> Iterator[bytes]:
    chunk: list[bytes] = []
    size = 0
    for item in items:
        chunk.append(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
        size += len(chunk[-1])
        if len(chunk) >= _CHUNK_ITEMS or size >= _CHUNK_BYTES:
            yield pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL)
            chunk, size = [], 0
    if chunk:
        yield pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL)


def _start(work: Callable[[Any], Any]) -> _Worker:
    # Spawned, not forked: pyarrow and the command line hold threads and locks that a fork would copy.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, pickle.dumps(work)), daemon=True)
    resource_tracker.ensure_running()  # else `start` does it, and lets interrupts through again
    with _interrupts_held():  # the process inherits that Ctrl-C is not for it
        process.start()
    there.close()  # else this process would keep the connection open that tells it of the worker's end
    return _Worker(process, here)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds SIGINT back; it arrives when the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(worker: _Worker, chunk: bytes) -> None:
    try:
        worker.connection.send_bytes(chunk)
    except OSError as error:
        raise _killed(worker) from error


def _receive(worker: _Worker) -> list[Any]:
    try:
        answer = worker.connection.recv_bytes()
    except (EOFError, OSError) as error:
        raise _killed(worker) from error
    results = pickle.loads(answer)
    if isinstance(results, BaseException):
        raise results
    return results


def _killed(worker: _Worker) -> RunError:
    worker.process.join(timeout=1)
    return RunError(
        f"a worker process was killed (exit code {worker.process.exitcode}; out of memory?); nothing was written: "
        "free some memory, or run again with --workers 1"
    )


def _serve(connection: Connection, work: bytes) -> None:
    """What a worker does until its parent closes the connection, or is gone."""
    chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def take_in() -> None:
        try:
            while True:
                chunks.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)

    # Taken in at once: parent and worker would wait for ever if both were sending.
    threading.Thread(target=take_in, daemon=True).start()
    function = pickle.loads(work)
    with suppress(OSError):  # the parent is gone
        while True:
            connection.send_bytes(_results(function, chunks.get()))


def _results(function: Callable[[Any], Any], chunk: bytes) -> bytes:
    try:
        return pickle.dumps([function(pickle.loads(item)) for item in pickle.loads(chunk)], pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return pickle.dumps(error)
