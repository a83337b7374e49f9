"""Flash attention on the CPU, block by block: blocks of the same size at even steps are one batched call.

Backward, large causal blocks are parted: the operator works in tiles of 512 keys and computes the whole of those that
the diagonal crosses. With `lse` and `out` given, the gradient is a sum over any parts of the keys, so a causal block is
its two halves and the rectangle between them, and so on down to about `_CAUSAL_LEAF` tokens.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from misotune.attention.kernels.base import Call, Grads, at_least_float32, band, empty_result, float_type, with_keys
from misotune.attention.merge import BlockResult
from misotune.attention.plan import Block, Blocks
from misotune.attention.spans import Span

# Rows of a batched call: enough that all threads have work, and no more memory than that takes.
_ROWS_AT_ONCE = 4096

# The flash backward works in tiles of 512 keys, and converts the operands of each product by itself: in half precision,
# blocks up to this size are slower than in float32 (128 queries and keys: by 2.5 times).
_SHORT_KEYS = 512
_SHORT_QUERIES = 1024

# Causal blocks of fewer than twice so many tokens are taken whole by the backward.
_CAUSAL_LEAF = 128


class CpuFlash:
    """Flash attention of aten on the CPU: float64, float32, bfloat16, float16.

    Args:
        repeats_keys: In this version of torch, grouped-query heads need their keys repeated.
    """

    name = "flash (CPU)"

    def __init__(self, repeats_keys: bool = False) -> None:
        self._repeats_keys = repeats_keys

    def forward(self, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scale: float) -> BlockResult:
        """Returns each block's result and log-sum-exp."""
        k, v = self._for_heads_of(q, k), self._for_heads_of(q, v)
        result = empty_result(q, blocks)
        for run in _forward_runs(blocks):
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                run.queries(q),
                run.keys(k),
                run.keys(v),
                0.0,
                run.is_causal,
                attn_mask=run.mask(q, q.dtype),
                scale=scale,
            )
            if run.is_all_of(blocks):
                return BlockResult(out.transpose(1, 2).flatten(0, 1), lse.transpose(0, 1).flatten(1))
            run.out(result).copy_(out)
            run.lse(result).copy_(lse)
        return result

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, calls: Sequence[Call], scale: float) -> Grads:
        """Returns the gradients of q, k and v, summed over all calls."""
        sums = Grads(*(torch.empty(x.shape, dtype=float_type(x)) for x in (q, k, v)))
        operands = _Operands(grad, q, self._for_heads_of(q, k), self._for_heads_of(q, v))
        # What a run needs in float32 is converted once for all runs: there may be many, and each is short.
        wide: _Operands | None = None
        for call in calls:
            runs = _backward_runs(call.blocks)
            values, wide_values = call.values, None
            for run in runs:
                if run.is_short and float_type(q) != q.dtype:
                    wide = wide or _Operands(*map(at_least_float32, operands))
                    wide_values = wide_values or BlockResult(at_least_float32(values.out), values.lse)
                    parts = wide.backward(run, wide_values, scale)
                else:
                    parts = operands.backward(run, values, scale)
                if len(calls) == len(runs) == 1 and run.is_all_of(call.blocks) and parts[1].shape[1] == k.shape[1]:
                    return Grads(*(part.transpose(1, 2).flatten(0, 1) for part in parts))
                # The diagonal of the first call holds every token once, and comes first.
                is_first = call is calls[0] and run.reads_left_only
                for total, part, view in zip(sums, parts, (run.queries, run.keys, run.keys), strict=True):
                    _collect(total, part, view, is_first=is_first)
        return sums

    def _for_heads_of(self, q: Tensor, x: Tensor) -> Tensor:
        return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) if self._repeats_keys else x


class _Operands(NamedTuple):
    """What the backward reads, all of one type."""

    grad: Tensor
    q: Tensor
    k: Tensor
    v: Tensor

    def backward(self, run: "_Run", values: BlockResult, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Returns a run's gradients of q, k and v (N, heads, tokens, D)."""
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            run.queries(self.grad),
            run.queries(self.q),
            run.keys(self.k),
            run.keys(self.v),
            run.out(values),
            run.lse(values),
            0.0,
            run.is_causal,
            attn_mask=run.mask(self.q, self.q.dtype),
            scale=scale,
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive blocks of the same size at even steps: one batched call.

    Attributes:
        first: The first block, without the queries that read no key.
        count: Blocks.
        query_step: Tokens from one block's queries to the next's: 0 if all read with the same.
        key_step: Tokens from one block's keys to the next's.
        row: The first block's first row in the result.
        row_step: Rows from one block's to the next's.
        reads_left_only: No query reads a key to the right of its own.
    """

    first: Block
    count: int
    query_step: int
    key_step: int
    row: int
    row_step: int
    reads_left_only: bool

    def queries(self, x: Tensor) -> Tensor:
        """Returns the blocks' tokens of x (T, H, D) as a view (N, H, T, D)."""
        return _windows(x, self.first.queries, self.query_step, self.count)

    def keys(self, x: Tensor) -> Tensor:
        """Returns the blocks' tokens of x (S, K, D) as a view (N, K, S, D)."""
        return _windows(x, self.first.keys, self.key_step, self.count)

    def out(self, result: BlockResult) -> Tensor:
        """Returns the blocks' rows of the result as a view (N, H, T, D)."""
        return _windows(result.out, Span(self.row, self.row + len(self.first.queries)), self.row_step, self.count)

    def lse(self, result: BlockResult) -> Tensor:
        """Returns the blocks' rows of the log-sum-exps as a view (N, H, T)."""
        heads, rows = result.lse.stride()
        shape = (self.count, len(result.lse), len(self.first.queries))
        start = result.lse.storage_offset() + self.row * rows
        return result.lse.as_strided(shape, (self.row_step * rows, heads, rows), start)

    @property
    def is_short(self) -> bool:
        """Whether the backward in half precision would be slower than in float32."""
        return len(self.first.keys) <= _SHORT_KEYS and len(self.first.queries) <= _SHORT_QUERIES

    def is_all_of(self, blocks: Blocks) -> bool:
        """Whether the run holds every row of a call: what the operator returns is the result."""
        return self.count * len(self.first.queries) == blocks.num_rows

    @property
    def is_causal(self) -> bool:
        """Whether the kernel's own causal mask, which begins at the first key, is right."""
        return self.reads_left_only and self.first.left is None and len(self.first.queries) == len(self.first.keys)

    def mask(self, q: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Returns what is added to the scores, where the kernel's own masks do not serve."""
        if self.is_causal:
            return None
        seen = band(self.first, self.reads_left_only, 0, len(self.first.queries), q.device)
        return None if seen is None else torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -math.inf)


# All layers of a model have the same blocks.
_forward_cache: WeakKeyDictionary[Blocks, list["_Run"]] = WeakKeyDictionary()
_backward_cache: WeakKeyDictionary[Blocks, list["_Run"]] = WeakKeyDictionary()


def _forward_runs(blocks: Blocks) -> list[_Run]:
    if blocks not in _forward_cache:
        _forward_cache[blocks] = list(_runs(_whole(blocks), blocks.is_causal, most_rows=blocks.num_rows))
    return _forward_cache[blocks]


def _backward_runs(blocks: Blocks) -> list[_Run]:
    if blocks not in _backward_cache:
        diagonal, rest = _parted(_whole(blocks)) if blocks.is_causal else (_whole(blocks), [])
        runs = [*_runs(diagonal, blocks.is_causal, _ROWS_AT_ONCE), *_runs(rest, False, _ROWS_AT_ONCE)]
        _backward_cache[blocks] = runs
    return _backward_cache[blocks]


class _Part(NamedTuple):
    """A block or a part of one, and its first row in the result."""

    block: Block
    row: int


def _whole(blocks: Blocks) -> list[_Part]:
    """Returns the blocks as they are, but for queries that read no key."""
    parts = (_Part(with_keys(block), rows.start) for block, rows in zip(blocks.items, blocks.rows, strict=True))
    return [part for part in parts if len(part.block.queries)]


def _parted(parts: Iterable[_Part]) -> tuple[list[_Part], list[_Part]]:
    """Returns causal blocks as small causal blocks along the diagonal, and the rectangles below it."""
    diagonal: list[_Part] = []
    rest: list[_Part] = []
    todo = list(reversed(list(parts)))
    while todo:
        block, row = todo.pop()
        length = len(block.queries)
        num_leaves = length // _CAUSAL_LEAF
        if block.left is not None or length != len(block.keys) or num_leaves < 2:
            diagonal.append(_Part(block, row))
            continue
        # About half, in whole leaves: parts of the same size at even steps, of which many are one call.
        half = _CAUSAL_LEAF * ((num_leaves + 1) // 2)
        first, second = _halves(block.queries, half), _halves(block.keys, half)
        todo += [_Part(Block(first[1], second[1]), row + half), _Part(Block(first[0], second[0]), row)]
        rest.append(_Part(Block(first[1], second[0]), row + half))
    return diagonal, sorted(rest, key=lambda part: (len(part.block.keys), len(part.block.queries)))


def _halves(span: Span, first: int) -> tuple[Span, Span]:
    return Span(span.start, span.start + first), Span(span.start + first, span.stop)


def _runs(parts: Sequence[_Part], reads_left_only: bool, most_rows: int) -> Iterator[_Run]:
    """Yields the parts, those of the same size at even steps as one."""
    start = 0
    while start < len(parts):
        block, row = parts[start]
        end = start + 1
        steps = _steps(parts[start], parts[end]) if end < len(parts) else None
        most = min(len(parts), start + max(1, most_rows // len(block.queries)))
        while steps is not None and end < most and _steps(parts[end - 1], parts[end]) == steps:
            end += 1
        query_step, key_step, row_step = steps or (0, 0, 0)
        yield _Run(block, end - start, query_step, key_step, row, row_step, reads_left_only)
        start = end


def _steps(a: _Part, b: _Part) -> tuple[int, int, int] | None:
    """Returns how far b's queries, keys and rows lie behind those of a, if both have the same sizes."""
    sizes = [(len(part.block.queries), len(part.block.keys), part.block.left) for part in (a, b)]
    if sizes[0] != sizes[1]:
        return None
    query_step, key_step = b.block.queries.start - a.block.queries.start, b.block.keys.start - a.block.keys.start
    return (query_step, key_step, b.row - a.row) if query_step >= 0 and key_step > 0 and b.row > a.row else None


def _collect(total: Tensor, part: Tensor, view: Callable[[Tensor], Tensor], *, is_first: bool) -> None:
    """Puts a run's part (N, heads, tokens, D) into the sum, or adds it."""
    place = view(total)
    if part.shape[1] > place.shape[1]:  # keys that were repeated for their group of query heads
        count, heads, tokens, size = part.shape
        part = part.reshape(count, place.shape[1], heads // place.shape[1], tokens, size).sum(dim=2)
    if is_first:
        place.copy_(part)
    elif place.stride(0) == 0:  # all blocks have the same queries; one by one, they stay in the cache
        for block in part:
            place[0].add_(block)
    else:
        place.add_(part)


def _windows(x: Tensor, first: Span, step: int, count: int) -> Tensor:
    tokens, heads, size = x.stride()
    shape = (count, x.shape[1], len(first), x.shape[2])
    return x.as_strided(shape, (step * tokens, heads, tokens, size), x.storage_offset() + first.start * tokens)
