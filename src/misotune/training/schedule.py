"""Which samples make up each optimizer step, and each device's rows in it.

The order is a pure function of (seed, epoch) and, in the first epoch, of the samples' lengths; a step is a number of
samples. Packing, devices and accumulation only decide how a step's samples are laid out, never which they are. So the
loss of a step is the same for all of them, and a resumed run goes on where it stopped by counting.

The first two steps are the run's fullest and hold its longest samples, and a step's fullest row runs first: a run that
does not fit into memory ends in its first minutes. There are two such steps because in the second the optimizer's
state is in memory too.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from misotune.layout import pack, spread


@dataclass(frozen=True)
class Schedule:
    """The order of samples over a whole run.

    Attributes:
        lengths: Tokens of each sample.
        batch_size: Samples in one optimizer step, over all devices and accumulation.
        num_steps: Optimizer steps of the run.
        num_stream_samples: Samples in the run's stream; the last step takes what is left of it.
        num_devices: Devices that share a step.
        capacity: Tokens of a packed row; None: one sample a row.
        seed: Seed of the order.
    """

    lengths: Sequence[int]
    batch_size: int
    num_steps: int
    num_stream_samples: int
    num_devices: int
    capacity: int | None
    seed: int

    @cached_property
    def accumulation(self) -> int:
        """Micro-batches that each device runs in a step: as many as the fullest step needs."""
        if self.capacity is None:
            return math.ceil(min(self.batch_size, self.num_stream_samples) / self.num_devices)
        most = max(len(self._packed_rows(step)) for step in range(self.num_steps))
        return math.ceil(most / self.num_devices)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of the run, over all devices."""
        return self.num_steps * self.accumulation * self.num_devices

    def step_samples(self, step: int) -> list[tuple[int, int]]:
        """Returns a step's samples as (epoch, index); `step` counts from 0."""
        start = step * self.batch_size
        stop = min(start + self.batch_size, self.num_stream_samples)
        number = len(self.lengths)
        return [(at // number, int(self._order(at // number)[at % number])) for at in range(start, stop)]

    def step_rows(self, step: int) -> list[list[tuple[int, int]]]:
        """Returns a step's rows, one for each micro-batch of each device; an empty row has nothing to train.

        Micro-batch g of device d is row `g * num_devices + d`. Rows are of about the same length, and sorted by
        it, so that devices which run side by side have about the same work.
        """
        rows = self._packed_rows(step)
        slots = self.accumulation * self.num_devices
        if self.capacity is not None:
            samples = self.step_samples(step)
            even = [[samples[i] for i in row] for row in spread([self.lengths[i] for _, i in samples], slots)]
            if all(len(row) == 1 or self._tokens(row) <= self.capacity for row in even):
                rows = even
        rows.sort(key=self._tokens, reverse=True)
        return rows + [[] for _ in range(slots - len(rows))]

    @cached_property
    def packing(self) -> "Packing":
        """How well the rows of all steps are filled and shared out."""
        num_rows = room = tokens = longest = side_by_side = 0
        for step in range(self.num_steps):
            packed = [self._tokens(row) for row in self._packed_rows(step)]
            num_rows += len(packed)
            tokens += sum(packed)
            room += sum(max(length, self.capacity or 0) for length in packed)
            run = [self._tokens(row) for row in self.step_rows(step)]
            longest = max(longest, *run)
            side_by_side += sum(run[:: self.num_devices])  # sorted: the first of each micro-batch is its longest
        return Packing(num_rows, longest, 1 - tokens / room, side_by_side * self.num_devices / tokens)

    def _packed_rows(self, step: int) -> list[list[tuple[int, int]]]:
        samples = self.step_samples(step)
        if self.capacity is None:
            return [[sample] for sample in samples]
        rows = pack([self.lengths[index] for _, index in samples], self.capacity)
        return [[samples[i] for i in row] for row in rows]

    def _tokens(self, row: Sequence[tuple[int, int]]) -> int:
        return sum(self.lengths[index] for _, index in row)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # Steps look at one epoch, or at two where they meet.
            self._orders.pop(epoch - 2, None)
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
            self._orders[epoch] = self._fullest_first(order) if epoch == 0 else order
        return self._orders[epoch]

    def _fullest_first(self, order: np.ndarray) -> np.ndarray:
        """Returns the first epoch's order with exchanges alone: of steps, then of samples with the longest two.

        Only what the run trains on takes part, so that it trains on the same samples with and without.
        """
        lengths = np.asarray(self.lengths)
        number = min(len(order), self.num_stream_samples)
        num_steps = number // self.batch_size  # whole steps
        steps = order[: num_steps * self.batch_size].reshape(num_steps, self.batch_size)  # a view
        for step in range(min(2, num_steps)):
            fullest = step + int(lengths[steps[step:]].sum(axis=1).argmax())
            steps[[step, fullest]] = steps[[fullest, step]]
        # The longest takes the place of its step's longest, so that a step that has it already stays as it is.
        taken: list[int] = []
        for start in range(0, min(2 * self.batch_size, number), self.batch_size):
            here = np.arange(start, min(start + self.batch_size, number))
            others = np.setdiff1d(np.arange(number), taken)
            longest = int(others[lengths[order[others]].argmax()])
            place = longest if longest in here else int(here[lengths[order[here]].argmax()])
            order[[place, longest]] = order[[longest, place]]
            taken.append(place)
        return order

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def steps(self) -> Iterator[list[tuple[int, int]]]:
        """Yields every step's samples."""
        return (self.step_samples(step) for step in range(self.num_steps))


@dataclass(frozen=True, slots=True)
class Packing:
    """What packing comes to over a run.

    Attributes:
        num_rows: Rows that hold the samples of every step.
        longest_row: Tokens of the longest row that is run.
        waste: Share of the rows' room that stays empty. Rows are never padded, so it costs no computation.
        balance: Tokens of the longest row over those of the mean row, among the rows that devices run side by
            side; with 1 no device ever waits for another.
    """

    num_rows: int
    longest_row: int
    waste: float
    balance: float


def make_schedule(
    lengths: Sequence[int],
    *,
    batch_size: int,
    epochs: float | None,
    max_steps: int | None,
    num_devices: int,
    capacity: int | None,
    seed: int,
) -> Schedule:
    """Returns the schedule of a run.

    Args:
        lengths: Tokens of each sample.
        batch_size: Samples in one optimizer step.
        epochs: Passes over the data; None: only `max_steps` counts.
        max_steps: Optimizer steps at most; None: only `epochs` counts.
        num_devices: Devices that share a step.
        capacity: Tokens of a packed row; None: one sample a row.
        seed: Seed of the order.
    """
    limits: list[int] = []
    if epochs is not None:
        limits.append(max(1, round(epochs * len(lengths))))
    if max_steps is not None:
        limits.append(max_steps * batch_size)
    num_stream_samples = min(limits)
    return Schedule(
        lengths=lengths,
        batch_size=batch_size,
        num_steps=math.ceil(num_stream_samples / batch_size),
        num_stream_samples=num_stream_samples,
        num_devices=num_devices,
        capacity=capacity,
        seed=seed,
    )
