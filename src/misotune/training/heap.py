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
# torch aligns tensors to 64 bytes; glibc adds its own header.
_ALIGNMENT = 64
# By how much more the real heap grows than this one: a fifth in the runs of benchmarks/memory.py. For an aligned tensor
# glibc looks for 96 bytes more than it needs and cuts off the ends; where small objects settle in these, a gap neither
# fits the next tensor of its size nor joins its neighbour.
_PINNED = 0.2


class Heap:
    """A best-fit heap with gaps that join their neighbours, as glibc's main arena."""

    def __init__(self) -> None:
        self._end = 0
        self._mapped = 0
        self._places: dict[int, tuple[int, int]] = {}  # handle: (address, size); address -1: mapped on its own
        self._by_size: list[tuple[int, int]] = []  # gaps as (size, address), sorted
        self._gaps: dict[int, int] = {}  # address: size
        self._gap_ends: dict[int, int] = {}  # end: address
        self._handles = count()

    @property
    def held(self) -> int:
        """Bytes that the process holds, used or not."""
        return int(self._end * (1 + _PINNED)) + self._mapped

    def allocate(self, size: int) -> int:
        """Takes memory, and returns a handle by which it is freed."""
        size = -(-(size + _ALIGNMENT) // _ALIGNMENT) * _ALIGNMENT
        handle = next(self._handles)
        if size >= _MAPPED_FROM:
            self._mapped += size
            self._places[handle] = (-1, size)
            return handle
        best = bisect_left(self._by_size, (size, -1))
        if best < len(self._by_size):
            gap, address = self._by_size[best]
            self._take_gap(address)
            if gap > size:
                self._add_gap(address + size, gap - size)
        else:
            # The heap's last gap, too small as it is, is where it grows.
            address = self._gap_ends.get(self._end, self._end)
            if address < self._end:
                self._take_gap(address)
            self._end = address + size
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
