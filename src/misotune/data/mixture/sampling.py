"""How many rows a mixture draws from each source, and which: pure functions of sizes, weights and the seed.

Sources are drawn from in pools. With chunks, each domain is a pool and all pools give the same number of rows;
without, all sources are one pool. Inside a pool, sources count by their weights, or else by their rows.

The rule for the length: the largest pool sets it, unless the scarcest would have to give its rows more than
`max_epochs` times over; then that one sets it. What is over stays out, what is missing is repeated.
"""

import hashlib
import math
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle, islice


@dataclass(frozen=True, slots=True)
class Pool:
    """Sources that are drawn from together.

    Attributes:
        name: The domain; empty for the pool of all sources.
        sources: Which sources, by index.
        sizes: How many rows each of them has; at least one.
        weights: What each counts; None: by its rows.
    """

    name: str
    sources: tuple[int, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def shares(self) -> list[Fraction]:
        """Returns each source's share of the pool's rows; their sum is 1."""
        parts = [Fraction(str(part)) for part in self.weights or self.sizes]
        return [part / sum(parts) for part in parts]

    def most(self, max_epochs: float) -> int:
        """Returns how many rows the pool can give, when no source gives its rows more than `max_epochs` times over."""
        times = Fraction(str(max_epochs))
        return math.floor(min(times * n / share for n, share in zip(self.sizes, self.shares(), strict=True)))

    def whole(self) -> int:
        """Returns how many rows the pool gives once each of its rows is drawn."""
        return math.ceil(max(n / share for n, share in zip(self.sizes, self.shares(), strict=True)))

    def divide(self, total: int) -> list[int]:
        """Returns how many of `total` rows each source gives, by largest remainders.

        >>> Pool("math", (0, 1), (100, 100), (2.0, 1.0)).divide(10)
        [7, 3]
        """
        exact = [total * share for share in self.shares()]
        counts = [math.floor(number) for number in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for i in by_remainder[: total - sum(counts)]:
            counts[i] += 1
        return counts


@dataclass(frozen=True, slots=True)
class Draw:
    """One row of a mixture.

    Attributes:
        source: Which source, by index.
        times: How often the row was drawn before.
        row: Which row of the source.
    """

    source: int
    times: int
    row: int


def pool_totals(pools: Sequence[Pool], *, rows_per_chunk: int, max_epochs: float, max_rows: int | None) -> list[int]:
    """Returns how many rows each pool gives: so many that chunks are full, and all pools the same within one row.

    Args:
        pools: In the order in which chunks take from them.
        rows_per_chunk: Rows of a chunk.
        max_epochs: How often the rows of a source may be drawn, on average.
        max_rows: Rows of the mixture at most.

    >>> pools = [Pool("chat", (0,), (100,)), Pool("code", (1,), (30,))]
    >>> pool_totals(pools, rows_per_chunk=2, max_epochs=1, max_rows=None)
    [30, 30]
    >>> pool_totals(pools, rows_per_chunk=2, max_epochs=2, max_rows=None)
    [60, 60]
    """
    most = [pool.most(max_epochs) for pool in pools]
    rounds = min(max(min(pool.whole(), n) for pool, n in zip(pools, most, strict=True)), min(most))
    total = rounds * len(pools)
    if max_rows is not None:
        total = min(total, max_rows)
    total -= total % rows_per_chunk
    return [len(range(i, total, len(pools))) for i in range(len(pools))]


def draw_rows(pools: Sequence[Pool], totals: Sequence[int], keys: Sequence[Sequence[int]], seed: int) -> Iterator[Draw]:
    """Yields a mixture's rows in order, taking from the pools in turn.

    Args:
        pools: In the order in which chunks take from them.
        totals: How many rows each gives (`pool_totals`).
        keys: Of each source, a random number for each row (`row_key`): the row's place in the order.
        seed: Decides how sources of one pool follow one another.
    """
    streams = [_draw_pool(pool, total, keys, seed) for pool, total in zip(pools, totals, strict=True)]
    for stream in islice(cycle(streams), sum(totals)):
        yield next(stream)


def _draw_pool(pool: Pool, total: int, keys: Sequence[Sequence[int]], seed: int) -> Iterator[Draw]:
    counts = pool.divide(total)
    order = array("L", (i for i, count in enumerate(counts) for _ in range(count)))
    random.Random(f"{seed}:order of {pool.name}").shuffle(order)
    draws = [_draw_source(source, keys[source]) for source in pool.sources]
    return (next(draws[i]) for i in order)


def _draw_source(source: int, keys: Sequence[int]) -> Iterator[Draw]:
    """All rows once, then all rows again in another order, for ever."""
    times = 0
    while True:
        again = keys if times == 0 else [row_key(times, str(key)) for key in keys]
        for row in sorted(range(len(keys)), key=again.__getitem__):
            yield Draw(source, times, row)
        times += 1


def row_key(seed: int, row_id: str) -> int:
    """Returns a number of 64 bits drawn by seed and row id."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=8).digest(), "big")
