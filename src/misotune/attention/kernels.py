"""The one seam to attention kernels: forward with log-sum-exp, and a backward that takes merged values.

    flash       CPU: aten's flash attention and its own backward operator
    reference   anywhere else: see `misotune.attention.reference`

A kernel for another device is one more class here with these two methods.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from misotune.attention.merge import BackwardValues, BlockResult

KERNELS = ("auto", "flash", "reference")


@runtime_checkable
class Kernel(Protocol):
    """Attention over one block of keys. Shapes: q, out (H, T, D); k, v (K, S, D); lse (H, T)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, scale: float) -> BlockResult:
        """Returns softmax(q k^T * scale) v and the log-sum-exp of each query's scores."""
        ...

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        values: BackwardValues,
        *,
        is_causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of q, k and v, with the softmax normalised by `values`."""
        ...


class CpuFlash:
    """Flash attention of aten on the CPU: float64, float32, bfloat16, float16; grouped-query heads as they are."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, scale: float) -> BlockResult:
        """Returns the block's result and log-sum-exp."""
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None], k[None], v[None], 0.0, is_causal, scale=scale
        )
        return BlockResult(out[0], lse[0])

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        values: BackwardValues,
        *,
        is_causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of q, k and v."""
        factor = values.grad_factor
        grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            (grad if factor == 1.0 else grad * factor)[None],
            q[None],
            k[None],
            v[None],
            values.out[None],
            values.lse[None],
            0.0,
            is_causal,
            scale=scale,
        )
        return grad_q[0], grad_k[0], grad_v[0]


def flash_kernel_for(device: torch.device) -> Kernel | None:
    """Returns the flash kernel of a device, or None where there is none and the reference must serve."""
    return CpuFlash() if device.type == "cpu" else None
