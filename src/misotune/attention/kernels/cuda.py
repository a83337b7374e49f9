"""Variable-length flash attention on CUDA: a call of many blocks is one launch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from misotune.attention.kernels.base import Call, Grads, add_at, float_type
from misotune.attention.kernels.eager import Eager
from misotune.attention.merge import BlockResult
from misotune.attention.plan import Blocks


class CudaFlash:
    """Variable-length flash attention on CUDA (compute capability 8.0 and newer): bfloat16, float16.

    The operators are those beneath `torch.nn.attention.varlen.varlen_attn`, which may choose cuDNN in their place
    and keeps its backward to itself.

    Args:
        operators: Where the two operators are found.
    """

    name = "flash (CUDA)"

    def __init__(self, operators: Any = torch.ops.aten) -> None:
        self._operators = operators

    def forward(self, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scale: float) -> BlockResult:
        """Returns each block's result and log-sum-exp."""
        if _is_band(blocks):
            return Eager().forward(q, k, v, blocks, scale)
        q, k, v = blocks.queries.take(q), blocks.keys.take(k), blocks.keys.take(v)
        out, lse, *_ = self._operators._flash_attention_forward(
            q, k, v, *_boundaries(blocks, q.device), 0.0, blocks.is_causal, False, scale=scale, **_window(blocks)
        )
        return BlockResult(out, lse)

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, calls: Sequence[Call], scale: float) -> Grads:
        """Returns the gradients of q, k and v, summed over all calls."""
        sums = self._call_backward(grad, q, k, v, calls[0], scale)
        for call in calls[1:]:
            if _is_band(call.blocks):
                for total, part in zip(sums, Eager().backward(grad, q, k, v, [call], scale), strict=True):
                    total.add_(part)
                continue
            parts = self._call_backward(grad, q, k, v, call, scale)
            for stack in call.blocks.stacks:
                part = stack.view(parts.q).sum(dim=0, dtype=float_type(parts.q))
                add_at(sums.q, stack.queries.index(q.device), part)
            for total, part in zip(sums[1:], parts[1:], strict=True):
                add_at(total, call.blocks.keys.index(k.device), part)
        return sums

    def _call_backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> Grads:
        """Returns a call's gradients, those of q for each row of its result."""
        blocks, values = call
        return Grads(
            *self._operators._flash_attention_backward(
                blocks.queries.take(grad).contiguous(),
                blocks.queries.take(q),
                blocks.keys.take(k),
                blocks.keys.take(v),
                values.out,
                values.lse,
                *_boundaries(blocks, q.device),
                0.0,
                blocks.is_causal,
                # The state of the random numbers of dropout, of which there is none.
                torch.zeros(2, dtype=torch.uint64, device=q.device),
                torch.empty(0, device=q.device),
                scale=scale,
                **_window(blocks),
            )
        )


def _is_band(blocks: Blocks) -> bool:
    """Whether a window begins elsewhere in each block, which flash kernels cannot express."""
    return not blocks.is_causal and any(block.left is not None for block in blocks.items)


def _window(blocks: Blocks) -> dict[str, int]:
    lefts = [block.left for block in blocks.items if block.left is not None]
    return {"window_size_left": max(lefts, default=-1), "window_size_right": 0 if blocks.is_causal else -1}


def _boundaries(blocks: Blocks, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    queries, keys = blocks.queries, blocks.keys
    return queries.boundaries(device), keys.boundaries(device), queries.longest, keys.longest
