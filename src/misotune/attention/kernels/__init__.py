"""The one seam to attention kernels: blocks forward with log-sum-exp, and a backward that takes fused values.

    CpuFlash      CPU: aten's flash attention and its backward operator
    CudaFlash     CUDA: aten's variable-length flash attention and its backward operator (FA2; FA3 or FA4 once
                  `torch.nn.attention.activate_flash_attention_impl` has put one in its place)
    Eager         any device and type, scores in blocks: slow, and all that the others cannot do

The flash operators are private to torch: they are looked up and tried before they are used. A kernel for another
device is one more class here.
"""

from functools import cache
from typing import Any

import torch

from misotune.attention.kernels.base import Call, Grads, Kernel
from misotune.attention.kernels.cpu import CpuFlash
from misotune.attention.kernels.cuda import CudaFlash
from misotune.attention.kernels.eager import Eager
from misotune.attention.plan import Block, Blocks
from misotune.attention.spans import Span

__all__ = ["KERNELS", "Call", "Grads", "Kernel", "select_kernel"]

KERNELS = ("auto", "flash", "eager", "reference")


def select_kernel(
    name: str, device: torch.device, dtype: torch.dtype, head_size: int, softcap: float | None = None
) -> Kernel:
    """Returns the kernel for a device, a type, a head size and a softcap.

    Args:
        name: `auto` takes flash where it can do this and else eager; `flash` and `eager` force one.
        device: Where the tensors lie.
        dtype: Their type.
        head_size: D.
        softcap: Of the scores, or None.

    Raises:
        ValueError: An unknown name, or `flash` where it cannot do this; with the reason.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel {name!r} is not one of {', '.join(KERNELS)}")
    if name in ("auto", "flash"):
        flash, reason = _flash(device.type)
        reason = reason or _flash_refusal(device, dtype, head_size, softcap)
        if flash is not None and reason is None:
            return flash
        if name == "flash":
            raise ValueError(f"kernel 'flash' cannot be used: {reason}; use 'auto' or 'eager'")
    return Eager(softcap)


def _flash_refusal(device: torch.device, dtype: torch.dtype, head_size: int, softcap: float | None) -> str | None:
    if softcap is not None:
        return f"it does not cap scores (softcap {softcap:g})"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
        if dtype not in (torch.bfloat16, torch.float16):
            return f"on CUDA it takes bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
        if head_size > 256 or head_size % 8:
            return f"on CUDA it takes head sizes up to 256 that 8 divides, not {head_size}"
    return None


@cache
def _flash(device_type: str) -> tuple[Kernel | None, str | None]:
    """Returns the flash kernel of a kind of device, tried as far as it can be here, or why there is none."""
    if device_type == "cpu":
        return _try_cpu_flash()
    if device_type == "cuda" and torch.version.hip is None:
        missing = [name for name, needs in _CUDA_OPERATORS.items() if not _has_arguments(name, needs)]
        if missing:
            return None, f"torch {torch.__version__} has no {' and no '.join(missing)} of the form that is needed"
        return CudaFlash(), None
    return None, f"there is no flash kernel for {'ROCm' if device_type == 'cuda' else device_type} here"


_CUDA_OPERATORS = {
    "_flash_attention_forward": ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "window_size_left", "window_size_right"),
    "_flash_attention_backward": ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "window_size_left", "window_size_right"),
}


def _has_arguments(operator: str, names: tuple[str, ...]) -> bool:
    packet: Any = getattr(torch.ops.aten, operator, None)
    return packet is not None and {argument.name for argument in packet.default._schema.arguments} >= set(names)


def _try_cpu_flash() -> tuple[Kernel | None, str | None]:
    """Tries the CPU's private operators, with grouped-query heads as they are and with repeated keys."""
    operator = "_scaled_dot_product_flash_attention_for_cpu"
    if not (
        _has_arguments(operator, ("attn_mask", "scale")) and _has_arguments(f"{operator}_backward", ("logsumexp",))
    ):
        return None, f"torch {torch.__version__} has no aten::{operator} of the form that is needed"
    q = torch.arange(24.0).reshape(3, 2, 4)
    k = q[:, :1]
    blocks = Blocks((Block(Span(0, 3), Span(0, 3)),), is_causal=True)
    expected = Eager().forward(q, k, k, blocks, 0.1)
    wanted = [*expected, *Eager().backward(q, q, k, k, [Call(blocks, expected)], 0.1)]
    reason = "its results are wrong"
    for kernel in (CpuFlash(), CpuFlash(repeats_keys=True)):
        try:
            result = kernel.forward(q, k, k, blocks, 0.1)
            got = [*result, *kernel.backward(q, q, k, k, [Call(blocks, result)], 0.1)]
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            continue
        if all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(got, wanted, strict=True)):
            return kernel, None
    return None, f"torch {torch.__version__}'s flash attention for the CPU cannot be used: {reason}"
