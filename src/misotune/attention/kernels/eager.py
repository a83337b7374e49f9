"""Attention written out in public operations: any device and type, a block's scores at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from misotune.attention.kernels.base import (
    Call,
    Grads,
    add_at,
    at_least_float32,
    band,
    empty_result,
    float_type,
    with_keys,
)
from misotune.attention.merge import BlockResult
from misotune.attention.plan import Block, Blocks
from misotune.attention.spans import Span

# Scores that `Eager` holds at once: 64 MiB in float32.
_SCORES_AT_ONCE = 2**24


class Eager:
    """Attention written out, on any device and in any type; at least in float32.

    Args:
        softcap: Scores s become softcap * tanh(s / softcap).
    """

    name = "eager"

    def __init__(self, softcap: float | None = None) -> None:
        self._softcap = softcap

    def forward(self, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scale: float) -> BlockResult:
        """Returns each block's result and log-sum-exp."""
        result = empty_result(q, blocks)
        for tile in _tiles(q, blocks):
            keys, values = at_least_float32(k[tile.keys.tokens]), at_least_float32(v[tile.keys.tokens])
            scores, _ = self._scores(q, keys, tile, scale)
            lse = torch.logsumexp(scores, dim=-1)
            out = torch.einsum("kgts,skd->tkgd", (scores - lse[..., None]).exp(), values)
            result.out[tile.rows] = out.flatten(1, 2).to(q.dtype)
            result.lse[:, tile.rows] = lse.flatten(0, 1)
        return result

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, calls: Sequence[Call], scale: float) -> Grads:
        """Returns the gradients of q, k and v, summed over all calls."""
        sums = Grads(*(torch.zeros_like(x, dtype=float_type(x)) for x in (q, k, v)))
        for tile, values in ((tile, call.values) for call in calls for tile in _tiles(q, call.blocks)):
            tokens, keys = tile.queries, tile.keys.tokens
            key, value = at_least_float32(k[keys]), at_least_float32(v[keys])
            query, grad_out, out = (_grouped(x, k) for x in (q[tokens], grad[tokens], values.out[tile.rows]))
            scores, slope = self._scores(q, key, tile, scale)
            p = (scores - values.lse[:, tile.rows].reshape(*scores.shape[:3], 1)).exp()
            grad_p = torch.einsum("tkgd,skd->kgts", grad_out, value)
            delta = (grad_out * out).sum(dim=-1).permute(1, 2, 0)[..., None]
            grad_scores = p * (grad_p - delta) * slope * scale
            add_at(sums.q, tokens, torch.einsum("kgts,skd->tkgd", grad_scores, key).flatten(1, 2))
            add_at(sums.k, keys, torch.einsum("kgts,tkgd->skd", grad_scores, query))
            add_at(sums.v, keys, torch.einsum("kgts,tkgd->skd", p, grad_out))
        return sums

    def _scores(self, q: Tensor, keys: Tensor, tile: "_Tile", scale: float) -> tuple[Tensor, Tensor | float]:
        """Returns the scores (K, H/K, T, S), and their slope by the scores before the softcap."""
        scores = torch.einsum("tkgd,skd->kgts", _grouped(q[tile.queries], keys), keys) * scale
        slope: Tensor | float = 1.0
        if self._softcap is not None:
            unit = torch.tanh(scores / self._softcap)
            scores, slope = self._softcap * unit, 1 - unit.square()
        mask = tile.mask(q.device)
        return (scores if mask is None else scores.masked_fill(~mask, -math.inf)), slope


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some queries of a block and their rows, so few that their scores fit."""

    block: Block
    queries: slice
    keys: Span
    rows: slice
    first: int
    reads_left_only: bool

    def mask(self, device: torch.device) -> Tensor | None:
        count = self.queries.stop - self.queries.start
        return band(self.block, self.reads_left_only, self.first, count, device)


def _tiles(q: Tensor, blocks: Blocks) -> Iterator[_Tile]:
    for whole, rows in zip(blocks.items, blocks.rows, strict=True):
        block = with_keys(whole)
        size = max(1, _SCORES_AT_ONCE // (len(block.keys) * q.shape[1]))
        for first in range(0, len(block.queries), size):
            count = min(size, len(block.queries) - first)
            start, row = block.queries.start + first, rows.start + first
            yield _Tile(
                block, slice(start, start + count), block.keys, slice(row, row + count), first, blocks.is_causal
            )


def _grouped(x: Tensor, keys: Tensor) -> Tensor:
    """Returns queries (T, H, D) by the key head that they read: (T, K, H/K, D)."""
    return at_least_float32(x).reshape(len(x), keys.shape[1], -1, x.shape[2])
