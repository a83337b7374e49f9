"""What glibc's allocator holds of the system's memory while tensors come and go.

A tensor below 32 MiB lies in the heap, which grows at its end and shrinks only there: freed tensors leave gaps, and a
gap serves a later tensor that is not larger. Larger tensors are mapped one by one and given back at once. What is
followed here is one row's pass, the heaviest, from an empty heap: `MemoryReturner` gives the gaps back after each step,
and within one when later rows add a tenth to what the heaviest leave.
"""

from bisect import bisect_left, insort
from itertools import count

# DEFAULT_MMAP_THRESHOLD_MAX of 64-bit glibc: the threshold grows to it with the first large tensors that are freed.
_MAPPED_FROM = 32 * 2**20
# The heap's end is given back when more than this is free there (M_TRIM_THRESHOLD: twice the mmap threshold).
_TRIMMED_FROM = 2 * _MAPPED_FROM
# glibc's pieces are multiples of 16 bytes, with a header.
_UNIT = 16
# torch aligns tensors to 64 bytes. For that glibc looks for so many bytes more than it needs and cuts off the ends: a
# gap does not fit the next tensor of its size.
_FOR_ALIGNMENT = 96
# In the ends that were cut off small objects settle, autograd's nodes for one, and keep the gaps on both sides apart.
# How often, and by how much more the real heap grows than this one, is fitted to the runs of benchmarks/memory.py.
_SETTLED, _SETTLED_EVERY = 64, 15
_GROWTH = 0.25


class Heap:
    """A best-fit heap with gaps that join their neighbours, as glibc's main arena."""

    def __init__(self) -> None:
        self._end = 0
        self._mapped = 0
        self._places: dict[int, tuple[int, int]] = {}  # handle: (address, size); address -1: mapped on its own
        self._by_size: list[tuple[int, int]] = []  # gaps as (size, address), sorted
        self._gaps: dict[int, int] = {}  # address: size
        self._gap_ends: dict[int, int] = {}  # end: address
        self._handles = count(1)

    @property
    def held(self) -> int:
        """Bytes that the process holds, used or not."""
        return int(self._end * (1 + _GROWTH)) + self._mapped

    def allocate(self, size: int) -> int:
        """Takes memory, and returns a handle by which it is freed."""
        size = -(-(size + _UNIT) // _UNIT) * _UNIT
        handle = next(self._handles)
        if size >= _MAPPED_FROM:
            self._mapped += size
            self._places[handle] = (-1, size)
            return handle
        settled = 0 if handle % _SETTLED_EVERY else _SETTLED
        best = bisect_left(self._by_size, (size + _FOR_ALIGNMENT, -1))
        if best < len(self._by_size):
            gap, address = self._by_size[best]
            self._take_gap(address)
            if gap > size + settled:
                self._add_gap(address + size + settled, gap - size - settled)
        else:
            # The heap's last gap, too small as it is, is where it grows.
            address = self._gap_ends.get(self._end, self._end)
            if address < self._end:
                self._take_gap(address)
            self._end = address + size + settled
        self._places[handle] = (address, size)
        return handle

    def free(self, handle: int) -> None:
        """Gives memory back to the allocator."""
        address, size = self._places.pop(handle)
        if address < 0:
            self._mapped -= size
            return
        before = self._gap_ends.get(address)
        if before is not None:
            size += self._take_gap(before)
            address = before
        if address + size in self._gaps:
            size += self._take_gap(address + size)
        if address + size == self._end and size > _TRIMMED_FROM:
            self._end = address
        else:
            self._add_gap(address, size)

    def _add_gap(self, address: int, size: int) -> None:
        insort(self._by_size, (size, address))
        self._gaps[address] = size
        self._gap_ends[address + size] = address

    def _take_gap(self, address: int) -> int:
        size = self._gaps.pop(address)
        del self._gap_ends[address + size]
        del self._by_size[bisect_left(self._by_size, (size, address))]
        return size
