"""The definition of MISO attention, written as the paper writes it.

Every line is an equation of arXiv 2505.11922. It builds each pair's score matrix, so it needs memory that is
quadratic in tokens: use it to check, or where no kernel fits. `misotune.attention.fused` computes the same.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from misotune.attention.spans import PackedLayout, SampleSpans


def reference_attention(
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T K D"],
    v: Float[Tensor, "T K D"],
    layout: PackedLayout,
    *,
    weighting: str = "uniform",
    scale: float | None = None,
) -> Float[Tensor, "T H D"]:
    """Returns the attention results of a packed row, by the literal equations.

    Args:
        q: Queries of all tokens of the row.
        k: Keys; query head h reads key head h // (H / K).
        v: Values.
        layout: Where each sample's inputs and output lie.
        weighting: `uniform` (eq. 3 with Score_i = 1/n), `fid` (eq. 7) or `vanilla` (eq. 4).
        scale: Factor of the scores; None means 1 / sqrt(D).

    Raises:
        ValueError: `weighting` is not one of the three.
    """
    if weighting not in _FUSIONS:
        raise ValueError(f"weighting {weighting!r} is not one of {', '.join(_FUSIONS)}")
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out = torch.zeros_like(q)
    for sample in layout.samples:
        for x in sample.inputs:
            out[x.tokens] = _causal_attention(q[x.tokens], k[x.tokens], v[x.tokens], scale)[0]
        out[sample.output.tokens] = _FUSIONS[weighting](q, k, v, sample, scale)
    return out


def _uniform(q: Tensor, k: Tensor, v: Tensor, sample: SampleSpans, scale: float) -> Tensor:
    """Equation 3 with Score_i = 1/n: the mean over inputs of the pair's own causal attention."""
    pairs, _ = _pairs(q, k, v, sample, scale)
    return torch.stack(pairs).mean(dim=0)


def _fid(q: Tensor, k: Tensor, v: Tensor, sample: SampleSpans, scale: float) -> Tensor:
    """Equation 7: Score_i = (S_i + S_out) / sum_j (S_j + S_out), where log(S_i + S_out) is pair i's lse."""
    pairs, lses = _pairs(q, k, v, sample, scale)
    score = torch.softmax(torch.stack(lses), dim=0)
    return (score[..., None] * torch.stack(pairs)).sum(dim=0)


def _vanilla(q: Tensor, k: Tensor, v: Tensor, sample: SampleSpans, scale: float) -> Tensor:
    """Equation 4: each block's share is its sum of exponentiated scores over that of all blocks."""
    y = sample.output.tokens
    blocks = [_attention(q[y], k[x.tokens], v[x.tokens], scale, mask=None) for x in sample.inputs]
    blocks.append(_causal_attention(q[y], k[y], v[y], scale))
    share = torch.softmax(torch.stack([lse for _, lse in blocks]), dim=0)
    return (share[..., None] * torch.stack([out for out, _ in blocks])).sum(dim=0)


def _pairs(q: Tensor, k: Tensor, v: Tensor, sample: SampleSpans, scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """CausalAttention(Q_out, [K_i, K_out], [V_i, V_out]) of every pair i, and its log-sum-exp of scores."""
    y = sample.output.tokens
    results = [
        _causal_attention(q[y], torch.cat([k[x.tokens], k[y]]), torch.cat([v[x.tokens], v[y]]), scale)
        for x in sample.inputs
    ]
    return [out for out, _ in results], [lse for _, lse in results]


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Equation 1 where the last query stands at the last key and none looks ahead."""
    behind = k.shape[0] - q.shape[0]
    query = torch.arange(q.shape[0], device=q.device)[:, None] + behind
    key = torch.arange(k.shape[0], device=q.device)[None, :]
    return _attention(q, k, v, scale, mask=key <= query)


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Equation 1, softmax(Q K^T * scale) V, with the scores' log-sum-exp; at least in float32."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("thd,shd->ths", q.to(dtype), k.to(dtype)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, :], -math.inf)
    out = torch.einsum("ths,shd->thd", torch.softmax(scores, dim=-1), v.to(dtype))
    return out.to(q.dtype), torch.logsumexp(scores, dim=-1)


_FUSIONS = {"uniform": _uniform, "fid": _fid, "vanilla": _vanilla}
