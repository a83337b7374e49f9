"""Which rows are shown: the first, by id, or the worst; and which are measured."""

import difflib
import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from misotune.data.dataset import Dataset
from misotune.errors import DataError, UsageError
from misotune.layout import EncodedSample
from misotune.preview.reading import Reading
from misotune.samples import Sample

Progress = Callable[[int, int], None]

_NUM_NEAR = 3
_CANDIDATES_PER_ROW = 8
_MIN_CANDIDATES = 64


def rows_at(dataset: Sequence[Sample], index: int) -> tuple[int, list[Sample]]:
    """Returns the number of the first row and the rows that train together with row `index`: itself, or its chunk."""
    row = dataset[index]
    if not row.chunk:
        return index, [row]
    first = index
    members = [row]
    while first and dataset[first - 1].chunk == row.chunk:
        first -= 1
        members.insert(0, dataset[first])
    last = index + 1
    while last < len(dataset) and dataset[last].chunk == row.chunk:
        members.append(dataset[last])
        last += 1
    return first, members


def iterate_rows(dataset: Sequence[Sample], on_progress: Progress | None = None) -> Iterator[tuple[int, list[Sample]]]:
    """Yields each row with its number, rows of one chunk together."""
    waiting: list[Sample] = []
    first = 0
    for index, row in enumerate(dataset):
        if waiting and not (row.chunk and row.chunk == waiting[0].chunk):
            yield first, waiting
            waiting = []
        if not waiting:
            first = index
        waiting.append(row)
        if on_progress:
            on_progress(index + 1, len(dataset))
    if waiting:
        yield first, waiting


def first_rows(dataset: Sequence[Sample], number: int) -> list[tuple[int, list[Sample]]]:
    """Returns the first rows of the dataset; a chunk counts as one."""
    chosen: list[tuple[int, list[Sample]]] = []
    index = 0
    while len(chosen) < number and index < len(dataset):
        chosen.append(rows_at(dataset, index))
        index += len(chosen[-1][1])
    return chosen


def draw_rows(
    dataset: Sequence[Sample], number: int, seed: int, on_progress: Progress | None = None
) -> Iterator[tuple[int, list[Sample]]]:
    """Yields all rows where there are at most `number`, else so many drawn by seed, in the dataset's order.

    A chunk of which several rows are drawn comes once.
    """
    if len(dataset) <= number:
        yield from iterate_rows(dataset, on_progress)
        return
    behind = 0
    drawn = sorted(random.Random(f"{seed}:preview").sample(range(len(dataset)), number))
    for done, index in enumerate(drawn, start=1):
        if index >= behind:
            first, members = rows_at(dataset, index)
            behind = first + len(members)
            yield first, members
        if on_progress:
            on_progress(done, number)


def find_rows(dataset: Dataset, ids: Sequence[str]) -> list[tuple[int, list[Sample]]]:
    """Returns the rows with these ids, in the order asked; of a sample's id in mode flat (`ID#2`), its row.

    Raises:
        UsageError: There is no such row; the message has the nearest ids.
    """
    known: list[str] = dataset.column("id")
    numbers = {name: index for index, name in reversed(list(enumerate(known)))}
    chosen: list[int] = []
    for name in ids:
        index = numbers.get(name, numbers.get(name.rpartition("#")[0]))
        if index is None:
            raise UsageError(f"--row {name!r}: no such row; {_nearest(name, known)}")
        chosen.append(index)
    return [rows_at(dataset, index) for index in dict.fromkeys(chosen)]


def _nearest(name: str, ids: Sequence[str]) -> str:
    near = [known for known in ids if name and name in known][:_NUM_NEAR]
    near = near or difflib.get_close_matches(name, ids, n=_NUM_NEAR, cutoff=0.5)
    listed = ", ".join(repr(known) for known in near or ids[:_NUM_NEAR])
    return f"the nearest: {listed}" if near else f"the dataset begins with {listed}"


@dataclass(slots=True)
class _Extremes:
    """The rows with the largest values so far; of equal ones, the earlier rows."""

    number: int
    heap: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])

    def add(self, value: float, index: int) -> None:
        entry = (value, -index)
        if len(self.heap) < self.number:
            heapq.heappush(self.heap, entry)
        elif entry > self.heap[0]:
            heapq.heapreplace(self.heap, entry)

    def indices(self) -> list[int]:
        return [-negative for _, negative in sorted(self.heap, reverse=True)]


def worst_rows(
    dataset: Sequence[Sample], number: int, reading: Reading, on_progress: Progress | None = None
) -> list[tuple[int, list[Sample], str]]:
    """Returns the worst rows with a label each: the longest, those with the fewest trained tokens, the least sure.

    All rows are read. Encoding them all would take long, so that lengths are first compared in characters, and
    in tokens among the rows that have the most, or the fewest. A row comes once, with all its labels. Rows that
    are sure (confidence 1) are not among the least sure.

    Args:
        dataset: The dataset.
        number: Of each kind.
        reading: How training reads rows.
        on_progress: Called with (rows done, rows).
    """
    candidates = max(_MIN_CANDIDATES, _CANDIDATES_PER_ROW * number)
    longest, shortest, unsure = _Extremes(candidates), _Extremes(candidates), _Extremes(number)
    for index, members in iterate_rows(dataset, on_progress):
        longest.add(sum(_num_characters(row) for row in members), index)
        shortest.add(-sum(_num_trained_characters(row) for row in members), index)
        confidence = min(row.confidence for row in members)
        if confidence < 1:
            unsure.add(-confidence, index)
    labels: dict[int, list[str]] = {}
    by_tokens = _Extremes(number)
    for index in longest.indices():
        by_tokens.add(max((e.num_tokens for e in _encode(dataset, index, reading)), default=0), index)
    for rank, index in enumerate(by_tokens.indices(), start=1):
        labels.setdefault(index, []).append(_label("longest", rank, number))
    by_trained = _Extremes(number)
    for index in shortest.indices():
        encoded = _encode(dataset, index, reading)
        if encoded:
            by_trained.add(-min(e.num_trained_tokens for e in encoded), index)
    for rank, index in enumerate(by_trained.indices(), start=1):
        labels.setdefault(index, []).append(_label("fewest trained tokens", rank, number))
    for rank, index in enumerate(unsure.indices(), start=1):
        labels.setdefault(index, []).append(_label("lowest confidence", rank, number))
    return [(*rows_at(dataset, index), ", ".join(why)) for index, why in labels.items()]


def _label(what: str, rank: int, number: int) -> str:
    return what if number == 1 else f"{what}: {rank} of {number}"


def _num_characters(row: Sample) -> int:
    prompts = sum(len(message["content"]) for entry in row.inputs for message in entry.messages)
    return prompts + len(row.output)


def _num_trained_characters(row: Sample) -> int:
    if not row.history_loss:
        return len(row.output)
    turns = (message for message in row.inputs[0].messages if message["role"] == "assistant")
    return len(row.output) + sum(len(message["content"]) for message in turns)


def _encode(dataset: Sequence[Sample], index: int, reading: Reading) -> Sequence[EncodedSample]:
    """Returns the samples of a row without limits on lengths: what is too long is what is looked for."""
    try:
        return reading.encode_whole(rows_at(dataset, index)[1]).samples
    except DataError:
        return []
