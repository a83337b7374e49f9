"""The definition of MISO attention, written as the paper writes it.

Every line is an equation of arXiv 2505.11922. It builds each pair's score matrix, so it needs memory that is
quadratic in tokens: use it to check. `misotune.attention.fused` computes the same.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from misotune.attention.spans import PackedLayout, SampleSpans, Span
from misotune.attention.weighting import require_weighting


def reference_attention(
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T K D"],
    v: Float[Tensor, "T K D"],
    layout: PackedLayout,
    *,
    weighting: str = "uniform",
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "T H D"]:
    """Returns the attention results of a packed row, by the literal equations.

    Args:
        q: Queries of all tokens of the row.
        k: Keys; query head h reads key head h // (H / K).
        v: Values.
        layout: Where each sample's inputs and output lie.
        weighting: `uniform` (eq. 3 with Score_i = 1/n), `fixed` (eq. 3 with the samples' own weights), `fid`
            (eq. 7) or `vanilla` (eq. 4).
        scale: Factor of the scores; None means 1 / sqrt(D).
        window: Keys that a query reads at most, its own included, counted along its pair; None: all.
        softcap: Scores s become softcap * tanh(s / softcap); None: as they are.

    Raises:
        ValueError: An unknown weighting.
    """
    require_weighting(weighting)
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    copies = q.shape[1] // k.shape[1]
    row = _Row(
        q, k.repeat_interleave(copies, dim=1), v.repeat_interleave(copies, dim=1), _Scoring(scale, window, softcap)
    )
    out = torch.zeros_like(q)
    for sample in layout.samples:
        for x in sample.inputs:
            out[x.tokens] = row.results(row.scores(x, x), x)
        if len(sample.output):
            out[sample.output.tokens] = _FUSIONS[weighting](row, sample)
    return out


class _Scoring(NamedTuple):
    scale: float
    window: int | None
    softcap: float | None


class _Row(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    scoring: _Scoring

    def scores(self, queries: Span, *keys: Span) -> Float[Tensor, "T H S"]:
        """Q [K_1 .. K_m]^T, scaled, causal: the last span of keys is the queries' own, the others lie before it."""
        scale, window, softcap = self.scoring
        k = _joined(self.k, keys)
        dtype = torch.promote_types(k.dtype, torch.float32)
        scores = torch.einsum("thd,shd->ths", self.q[queries.tokens].to(dtype), k.to(dtype)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        query = torch.arange(len(queries), device=k.device)[:, None] + len(k) - len(queries)
        key = torch.arange(len(k), device=k.device)[None, :]
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        return scores.masked_fill(~seen[:, None, :], -math.inf)

    def results(self, scores: Float[Tensor, "T H S"], *keys: Span) -> Float[Tensor, "T H D"]:
        """Equation 1: softmax(scores) [V_1 .. V_m]."""
        v = _joined(self.v, keys)
        return torch.einsum("ths,shd->thd", torch.softmax(scores, dim=-1), v.to(scores.dtype)).to(v.dtype)

    def pairs(self, sample: SampleSpans) -> tuple[Float[Tensor, "N T H D"], Float[Tensor, "N T H"]]:
        """CausalAttention(Q_out, [K_i, K_out], [V_i, V_out]) of every pair i, and its scores' log-sum-exp."""
        y = sample.output
        scores = [self.scores(y, x, y) for x in sample.inputs]
        results = [self.results(pair, x, y) for x, pair in zip(sample.inputs, scores, strict=True)]
        return torch.stack(results), torch.stack([torch.logsumexp(pair, dim=-1) for pair in scores])


def _joined(x: Tensor, spans: tuple[Span, ...]) -> Tensor:
    return torch.cat([x[span.tokens] for span in spans])


def _uniform(row: _Row, sample: SampleSpans) -> Tensor:
    """Equation 3 with Score_i = 1/n: the mean over inputs of the pair's own causal attention."""
    return row.pairs(sample)[0].mean(dim=0)


def _fixed(row: _Row, sample: SampleSpans) -> Tensor:
    """Equation 3 with the sample's constants Score_i."""
    pairs, _ = row.pairs(sample)
    scores = torch.tensor(sample.weights or [1 / len(pairs)] * len(pairs), dtype=pairs.dtype, device=pairs.device)
    return torch.einsum("n,nthd->thd", scores, pairs)


def _fid(row: _Row, sample: SampleSpans) -> Tensor:
    """Equation 7: Score_i = (S_i + S_out) / sum_j (S_j + S_out), where log(S_i + S_out) is pair i's lse."""
    pairs, lses = row.pairs(sample)
    return (torch.softmax(lses, dim=0)[..., None] * pairs).sum(dim=0).to(pairs.dtype)


def _vanilla(row: _Row, sample: SampleSpans) -> Tensor:
    """Equation 4: one softmax over [K_1 .. K_n, K_out]."""
    y = sample.output
    inputs = [row.scores(y, x, y)[..., : len(x)] for x in sample.inputs]
    return row.results(torch.cat([*inputs, row.scores(y, y)], dim=-1), *sample.inputs, y)


_FUSIONS = {"uniform": _uniform, "fixed": _fixed, "fid": _fid, "vanilla": _vanilla}
