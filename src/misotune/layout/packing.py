"""Packing: which samples share a row, and how rows come to be of one length."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns rows of sample indices, each at most `capacity` tokens, by best-fit decreasing.

    Samples are taken longest first; each goes to the row with the least room that still takes it. Ties keep
    the order of `lengths`, so the result is a pure function of its arguments. A sample longer than `capacity`
    gets a row of its own.

    Args:
        lengths: Tokens of each sample, all inputs and the output together.
        capacity: Tokens a row may hold.

    >>> pack([5, 3, 4, 2, 1], capacity=8)
    [[0, 1], [2, 3, 4]]
    """
    rows: list[list[int]] = []
    by_room: list[tuple[int, int]] = []  # (room left, row), kept sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = min(lengths[index], capacity)
        best = bisect_left(by_room, (length, 0))
        if best < len(by_room):
            room, row = by_room.pop(best)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        insort(by_room, (room - length, row))
    return rows


def spread(lengths: Sequence[int], num_rows: int) -> list[list[int]]:
    """Returns at most `num_rows` rows of sample indices, of about the same length: longest processing time first.

    Samples are taken longest first; each goes to the row that is the shortest so far. The longest row has at most
    4/3 of the tokens of the best arrangement (Graham, 1969).

    Args:
        lengths: Tokens of each sample, all inputs and the output together.
        num_rows: Rows to fill; fewer samples fill fewer rows.

    >>> spread([5, 3, 4, 2, 1], num_rows=2)
    [[0, 3, 4], [2, 1]]
    """
    rows: list[list[int]] = [[] for _ in range(min(num_rows, len(lengths)))]
    shortest = [(0, row) for row in range(len(rows))]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens, row = shortest[0]
        rows[row].append(index)
        heapq.heapreplace(shortest, (tokens + lengths[index], row))
    return rows
