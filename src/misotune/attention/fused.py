"""MISO attention in two attention calls and one merge, with the exact backward.

For a packed row: (a) causal self-attention of every segment, (b) each output over each of its inputs, then
`misotune.attention.merge`. The output's keys are never repeated, and nothing quadratic in tokens is stored.
The number of query-key products is at most that of one causal row over the same tokens.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from misotune.attention.kernels import Kernel, flash_kernel_for
from misotune.attention.merge import WEIGHTINGS, BackwardValues, BlockResult
from misotune.attention.reference import reference_attention
from misotune.attention.spans import PackedLayout, SampleSpans, Span


def miso_attention(
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T K D"],
    v: Float[Tensor, "T K D"],
    layout: PackedLayout,
    *,
    weighting: str = "uniform",
    scale: float | None = None,
    kernel: str = "auto",
) -> Float[Tensor, "T H D"]:
    """Returns the same as `reference_attention`, fast.

    Args:
        q: Queries of all tokens of the row.
        k: Keys; query head h reads key head h // (H / K).
        v: Values.
        layout: Where each sample's inputs and output lie.
        weighting: `uniform` (eq. 3 with Score_i = 1/n), `fid` (eq. 7) or `vanilla` (eq. 4).
        scale: Factor of the scores; None means 1 / sqrt(D).
        kernel: `auto` takes the device's flash kernel if there is one, else the reference; `flash` and
            `reference` force one.

    Raises:
        ValueError: An unknown weighting, or `flash` on a device without a flash kernel.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting {weighting!r} is not one of {', '.join(WEIGHTINGS)}")
    flash = None if kernel == "reference" else flash_kernel_for(q.device)
    if flash is None:
        if kernel == "flash":
            raise ValueError(f"no flash kernel for device {q.device.type!r}; use kernel='reference'")
        return reference_attention(q, k, v, layout, weighting=weighting, scale=scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    function: Any = _MisoAttention
    return function.apply(q, k, v, layout, weighting, scale, flash)


class _Call(NamedTuple):
    """One attention call of a row: which queries read which keys, and what its backward is given."""

    queries: Span
    keys: Span
    is_causal: bool
    values: BackwardValues


class _MisoAttention(torch.autograd.Function):
    """A row's calls, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: PackedLayout,
        weighting: str,
        scale: float,
        kernel: Kernel,
    ) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        attend = partial(_attend, q, k, v, scale, kernel)
        calls = [call for sample in layout.samples for call in _sample_calls(sample, weighting, attend, out)]
        ctx.save_for_backward(q, k, v, *(x for call in calls for x in (call.values.out, call.values.lse)))
        ctx.calls = [(call.queries, call.keys, call.is_causal, call.values.grad_factor) for call in calls]
        ctx.scale, ctx.kernel = scale, kernel
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        # A token's gradient is a sum over calls: summed in at least float32, rounded once.
        grads = [torch.zeros(x.shape, dtype=_sum_dtype(x), device=x.device) for x in (q, k, v)]
        for i, (queries, keys, is_causal, grad_factor) in enumerate(ctx.calls):
            call_grads = ctx.kernel.backward(
                _heads(grad_outputs[0], queries),
                _heads(q, queries),
                _heads(k, keys),
                _heads(v, keys),
                BackwardValues(saved[2 * i], saved[2 * i + 1], grad_factor),
                is_causal=is_causal,
                scale=ctx.scale,
            )
            for grad, part, span in zip(grads, call_grads, (queries, keys, keys), strict=True):
                grad[span.tokens] += part.transpose(0, 1)
        grad_q, grad_k, grad_v = (grad.to(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))
        return grad_q, grad_k, grad_v, None, None, None, None


def _sample_calls(
    sample: SampleSpans, weighting: str, attend: Callable[[Span, Span, bool], BlockResult], out: Tensor
) -> Iterator[_Call]:
    """Fills `out` for one sample and yields the calls that its backward repeats."""
    # With one input the pair is all there is: [x_1 ; y] is one plain causal segment, as in SFT.
    segments = sample.inputs if len(sample.inputs) > 1 else (sample.whole,)
    for span in segments:
        result = attend(span, span, True)
        out[span.tokens] = result.out.transpose(0, 1)
        yield _Call(span, span, True, BackwardValues(result.out, result.lse))
    if len(sample.inputs) > 1:
        y = sample.output
        merged = WEIGHTINGS[weighting](
            [attend(y, x, False) for x in sample.inputs],
            attend(y, y, True),
        )
        out[y.tokens] = merged.out.transpose(0, 1)
        for x, values in zip(sample.inputs, merged.inputs, strict=True):
            yield _Call(y, x, False, values)
        yield _Call(y, y, True, merged.output)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, kernel: Kernel, queries: Span, keys: Span, is_causal: bool
) -> BlockResult:
    return kernel.forward(_heads(q, queries), _heads(k, keys), _heads(v, keys), is_causal=is_causal, scale=scale)


def _heads(x: Float[Tensor, "T H D"], span: Span) -> Float[Tensor, "H S D"]:
    """A span's tokens, heads first, as kernels take them; a view."""
    return x[span.tokens].transpose(0, 1)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
