"""A function over a stream of items in worker processes: in order, with a bounded number of items under way.

`ProcessPoolExecutor` can hang for ever when a worker is killed while its queue is being written (gh-94777), and
its workers outlive a killed parent: `Processes` do neither. Chunks go round, and no lock is shared.
"""

import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain, islice
from typing import Any, TypeVar

from misotune.processes import Processes

T = TypeVar("T")
R = TypeVar("R")

# A few hundred rows are done before two interpreters have started.
_ITEMS_BEFORE_WORKERS = 256
# A chunk is full at either bound: many small rows, or a few large ones.
_CHUNK_ITEMS = 64
_CHUNK_BYTES = 1 << 20
_CHUNKS_PER_WORKER = 3
# A chunk travels as its items' pickles: their size bounds it, and one is unpickled at a time.
_Chunk = list[bytes]


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
    cure = "nothing was written: free some memory, or run again with --workers 1"
    waiting: deque[int] = deque()
    with closing(Processes(_serve, cure=cure)) as processes:
        for number, chunk in enumerate(_chunks(items)):
            if number < workers:
                processes.start("a worker process", work)
            processes.send(number % workers, chunk)
            waiting.append(number % workers)
            if len(waiting) >= workers * _CHUNKS_PER_WORKER:
                yield from _received(processes, waiting.popleft())
        while waiting:
            yield from _received(processes, waiting.popleft())


def _chunks(items: Iterable[Any]) -> Iterator[_Chunk]:
    chunk: _Chunk = []
    size = 0
    for item in items:
        chunk.append(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
        size += len(chunk[-1])
        if len(chunk) >= _CHUNK_ITEMS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _received(processes: Processes, number: int) -> list[Any]:
    results = processes.receive_from(number)
    if isinstance(results, BaseException):
        raise results
    return results


def _serve(work: Callable[[Any], Any], chunks: Iterator[_Chunk], send: Callable[[Any], None]) -> None:
    """What a worker does."""
    for chunk in chunks:
        try:
            results: Any = [work(pickle.loads(item)) for item in chunk]
        except Exception as error:  # noqa: BLE001 - the parent raises it
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            results = error
        send(results)
