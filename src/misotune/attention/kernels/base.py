"""What attention kernels have in common: their interface, and the rules of blocks that are the same for all."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from misotune.attention.merge import BlockResult
from misotune.attention.plan import Block, Blocks, TokenIndex
from misotune.attention.spans import Span


class Call(NamedTuple):
    """What the backward takes of a call: its blocks, and values that normalise its softmax and correct its rows."""

    blocks: Blocks
    values: BlockResult


class Grads(NamedTuple):
    """Gradients of q, k and v."""

    q: Tensor
    k: Tensor
    v: Tensor


@runtime_checkable
class Kernel(Protocol):
    """Attention over the blocks of one call. Shapes: q (T, H, D); k, v (S, K, D); results (R, H, D) and (H, R)."""

    name: str

    def forward(self, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scale: float) -> BlockResult:
        """Returns softmax(q k^T * scale) v of each block, and the log-sum-exp of each query's scores."""
        ...

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, calls: Sequence[Call], scale: float) -> Grads:
        """Returns the gradients of q, k and v, summed over all calls (`misotune.attention.merge` says which values).

        `grad` has the shape of q: all blocks of a query's result take part in one sum. The blocks of the first
        call hold every token once.
        """
        ...


def with_keys(block: Block) -> Block:
    """Returns the block without its last queries that a negative `left` leaves without keys."""
    if block.left is None or block.left >= 0:
        return block
    start, stop = block.queries
    return Block(Span(start, max(start, stop + block.left)), block.keys, 0)


def band(block: Block, reads_left_only: bool, first: int, count: int, device: torch.device) -> Tensor | None:
    """Returns which keys (S) some queries (T) of a block read, or None: all."""
    masks_right = reads_left_only and len(block.queries) > 1
    if block.left is None and not masks_right:
        return None
    query = torch.arange(first, first + count, device=device)[:, None] + len(block.keys) - len(block.queries)
    key = torch.arange(len(block.keys), device=device)
    seen: Tensor | None = None
    if masks_right:
        seen = key <= query
    if block.left is not None:
        near = key >= query - block.left
        seen = near if seen is None else seen & near
    return seen


def empty_result(q: Tensor, blocks: Blocks) -> BlockResult:
    """Returns room for a call's result; rows of queries that read no key are what they must be."""
    shape = (blocks.num_rows, *q.shape[1:])
    lse = torch.full((q.shape[1], blocks.num_rows), -math.inf, dtype=float_type(q), device=q.device)
    has_idle_queries = any(block.left is not None and block.left < 0 for block in blocks.items)
    return BlockResult(q.new_zeros(shape) if has_idle_queries else q.new_empty(shape), lse)


def add_at(total: Tensor, index: TokenIndex, part: Tensor) -> None:
    """Adds to some tokens' sums, each of which occurs once; rounded once where the sum is not in float32."""
    total[index] = (total[index] + part).to(total.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Returns x in the type in which it is computed and summed."""
    return x.to(float_type(x))


def float_type(x: Tensor) -> torch.dtype:
    """Returns the type in which x is computed and summed."""
    return torch.promote_types(x.dtype, torch.float32)
