"""MISO attention in two attention calls and one merge, with the exact backward.

For a packed row (`misotune.attention.plan`): (a) causal self-attention of every segment, (b) each output over its
inputs, then `misotune.attention.merge`. Nothing quadratic in tokens is stored.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from misotune.attention.kernels import Call, Grads, Kernel, select_kernel
from misotune.attention.merge import BlockResult, join, merge, own_backward_out
from misotune.attention.plan import FusedOutputs, RowPlan, plan_row
from misotune.attention.reference import reference_attention
from misotune.attention.spans import PackedLayout
from misotune.attention.weighting import require_weighting


def miso_attention(
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "S K D"],
    v: Float[Tensor, "S K D"],
    layout: PackedLayout,
    *,
    weighting: str = "uniform",
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    kernel: str = "auto",
    plan: RowPlan | None = None,
) -> Float[Tensor, "T H D"]:
    """Returns the same as `reference_attention`, fast.

    Args:
        q: Queries of all S tokens of the row, or of its last T (decoding, with the keys of all others cached).
        k: Keys; query head h reads key head h // (H / K).
        v: Values.
        layout: Where each sample's inputs and output lie.
        weighting: `uniform` (eq. 3 with Score_i = 1/n), `fixed` (eq. 3 with the samples' own weights), `fid`
            (eq. 7) or `vanilla` (eq. 4).
        scale: Factor of the scores; None means 1 / sqrt(D).
        window: Keys that a query reads at most, its own included, counted along its pair; None: all.
        softcap: Scores s become softcap * tanh(s / softcap); None: as they are.
        kernel: `auto` takes the device's flash kernel where it can do this, else `eager`; `flash`, `eager` and
            `reference` force one.
        plan: What `plan_row` returned for this row, to make it once for all layers.

    Raises:
        ValueError: An unknown weighting or kernel, or a kernel that cannot do this.
    """
    require_weighting(weighting)
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    if kernel == "reference":
        if len(q) < len(k):
            raise ValueError(
                "kernel 'reference' needs the queries of the whole row; use 'auto', or decode without cache"
            )
        return reference_attention(q, k, v, layout, weighting=weighting, scale=scale, window=window, softcap=softcap)
    chosen = select_kernel(kernel, q.device, q.dtype, q.shape[-1], softcap)
    plan = plan or plan_row(layout, weighting, num_queries=len(q) if len(q) < len(k) else None, window=window)
    if len(q) < len(k):
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ValueError("gradients need the queries of the whole row; decode under torch.no_grad()")
        return _forward(q, k, v, plan, scale, chosen)[0]
    function: Any = _MisoAttention
    return function.apply(q, k, v, plan, scale, chosen)


class _MisoAttention(torch.autograd.Function):
    """A row's two calls, forward and backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: RowPlan, scale: float, kernel: Kernel) -> Tensor:
        out, lse, pairs = _forward(q, k, v, plan, scale, kernel)
        ctx.save_for_backward(q, k, v, out, lse, *(pairs if pairs is not None else ()))
        ctx.plan, ctx.scale, ctx.kernel = plan, scale, kernel
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *pairs = ctx.saved_tensors
        plan: RowPlan = ctx.plan
        pair_values = BlockResult(*pairs) if plan.fused else None
        calls = [Call(plan.segments, BlockResult(_segments_out(plan, out, lse, pair_values), lse))]
        if pair_values is not None:
            if not plan.keeps_pairs:
                pair_values = BlockResult(plan.pairs.queries.take(out), pair_values.lse)
            calls.append(Call(plan.pairs, pair_values))
        grads: Grads = ctx.kernel.backward(grad_outputs[0], q, k, v, calls, ctx.scale)
        return grads.q.to(q.dtype), grads.k.to(k.dtype), grads.v.to(v.dtype), None, None, None


def _forward(
    q: Tensor, k: Tensor, v: Tensor, plan: RowPlan, scale: float, kernel: Kernel
) -> tuple[Tensor, Tensor, BlockResult | None]:
    """Returns O, the segments' lse with N_o in place of l_o, and O_g and N_g of all pairs."""
    out, lse = kernel.forward(q, k, v, plan.segments, scale)
    if not plan.fused:
        return out, lse, None
    pairs = kernel.forward(q, k, v, plan.pairs, scale)
    for outputs in plan.fused:
        tokens = outputs.stack.queries.index(q.device)
        parts = _stack(pairs, outputs)
        groups = join(parts) if outputs.num_joined > 1 else BlockResult(parts.out[:, 0], parts.lse[:, 0])
        merged = merge(groups, BlockResult(out[tokens], lse[:, tokens]), *outputs.logs(lse))
        out[tokens], lse[:, tokens] = merged.out, merged.own_lse
        parts.lse.copy_(merged.groups.lse[:, None].expand_as(parts.lse))
        if outputs.num_joined > 1:
            parts.out.copy_(merged.groups.out[:, None].expand_as(parts.out))
    # With one group for each output (fid, vanilla) O_g is O: it need not be kept twice.
    return out, lse, pairs if plan.keeps_pairs else BlockResult(out[:0], pairs.lse)


def _segments_out(plan: RowPlan, out: Tensor, lse: Tensor, pairs: BlockResult | None) -> Tensor:
    """Returns the `out` that the backward of the segments takes: O, but sum_g p_g O_g for the outputs."""
    if pairs is None or not plan.keeps_pairs:
        return out
    own = out.clone()
    for outputs in plan.fused:
        tokens = outputs.stack.queries.index(out.device)
        parts = _stack(pairs, outputs)
        groups = BlockResult(parts.out[:, 0], parts.lse[:, 0])
        own[tokens] = own_backward_out(groups, lse[:, tokens], outputs.logs(lse)[1]).to(out.dtype)
    return own


def _stack(pairs: BlockResult, outputs: FusedOutputs) -> BlockResult:
    """Returns the outputs' rows as views (G, J, Y, H, D) and (G, J, H, Y)."""
    shape = (outputs.num_groups, outputs.num_joined)
    out, lse = outputs.stack.view(pairs.out), outputs.stack.view(pairs.lse.T).transpose(1, 2)
    return BlockResult(out.view(*shape, *out.shape[1:]), lse.view(*shape, *lse.shape[1:]))
