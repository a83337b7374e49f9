"""The fusion of a sample's attention results, forward, and what it leaves for the backward pass.

`misotune.attention.weighting` says which groups there are; here is the one formula for all of them. From the
results over each group (A_g, l_g) and over the output itself (A_o, l_o), with m copies of the output's keys:

    L_g = logaddexp(l_g, l_o + log m)     O_g = exp(l_g - L_g) A_g + exp(l_o + log m - L_g) A_o     O = sum_g w_g O_g

For the gradient, a flash kernel's backward recomputes a block's part of the softmax as exp(score - lse) and
takes its row correction from `out`. Told other values than the block's own, it returns the gradient of the
fused result, exactly:

    group g      out = O_g                lse = N_g = L_g - log w_g
    the output   out = sum_g p_g O_g      lse = N_o = -logsumexp_g(-N_g) - log m       p = softmax_g(-N_g)

since a key of group g contributes w_g exp(s - L_g) v to O, and one of the output's own m sum_g w_g exp(s - L_g) v.
(Differentiating this merge by autograd would need a gradient of the kernels' lse, which flash kernels silently
ignore.) N is also what measures attention: exp(l - N) is a block's share of it.

Kernels return lse in at least float32, so all merging is done there; only what is kept is rounded.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class BlockResult(NamedTuple):
    """What attention over one block of keys returned, or what its backward is to take for it.

    Attributes:
        out: The result.
        lse: Log-sum-exp of the scores, by which they are normalised; -inf for a query that read no key.
    """

    out: Float[Tensor, "*stack T H D"]
    lse: Float[Tensor, "*stack H T"]


class Merged(NamedTuple):
    """The fused result of the output's queries, and the values for the backward of each call.

    Attributes:
        out: O.
        own_lse: N_o.
        groups: O_g and N_g.
    """

    out: Float[Tensor, "Y H D"]
    own_lse: Float[Tensor, "H Y"]
    groups: BlockResult


def merge(
    groups: BlockResult, own: BlockResult, log_weights: Float[Tensor, "G Y"], log_copies: Float[Tensor, "Y"]
) -> Merged:
    """Fuses the results over G groups of inputs with the one over the output itself.

    Args:
        groups: A_g (G, Y, H, D) and l_g (G, H, Y); O_g takes the memory of A_g.
        own: A_o (Y, H, D) and l_o (H, Y).
        log_weights: log w_g of each output token.
        log_copies: log m of each output token.
    """
    own_lse = own.lse + log_copies
    lse = torch.logaddexp(groups.lse, own_lse)
    share = per_head((groups.lse - lse).exp())
    weights = log_weights.exp()[..., None, None]
    own_out = own.out.to(lse.dtype)
    result, total = torch.empty_like(own_out), torch.zeros_like(own_out)
    # Group by group and in place: a few passes over what fits a cache, and no memory that must first be mapped.
    for g, group_out in enumerate(groups.out):
        # The two shares sum to one: A_o + share (A_g - A_o).
        torch.lerp(own_out, result.copy_(group_out), share[g], out=result)
        group_out.copy_(result)
        total.addcmul_(result, weights[g])
    norms = lse - log_weights[:, None]
    own_norm = -torch.logsumexp(-norms, dim=0) - log_copies
    return Merged(total.to(own.out.dtype), own_norm, BlockResult(groups.out, norms))


def own_backward_out(groups: BlockResult, own_lse: Tensor, log_copies: Tensor) -> Float[Tensor, "Y H D"]:
    """Returns sum_g p_g O_g, the `out` that the backward of the output over itself takes, in lse's precision."""
    p = per_head((own_lse + log_copies - groups.lse).exp())
    result = torch.empty(groups.out.shape[1:], dtype=p.dtype, device=p.device)
    total = torch.zeros_like(result)
    for g, group_out in enumerate(groups.out):
        total.addcmul_(p[g], result.copy_(group_out))
    return total


def join(parts: BlockResult) -> BlockResult:
    """Returns the result over several blocks of keys as one softmax over all: (G, J, Y, H, D) to (G, Y, H, D)."""
    lse = torch.logsumexp(parts.lse, dim=1, keepdim=True)
    # A query that reads no key of any block has lse -inf, and a result of zero.
    share = per_head(torch.exp(parts.lse - lse.clamp_min(torch.finfo(lse.dtype).min)))
    return BlockResult((share * parts.out).sum(dim=1).to(parts.out.dtype), lse[:, 0])


def per_head(lse: Float[Tensor, "*stack H T"]) -> Float[Tensor, "*stack T H 1"]:
    """A number for each query and head, laid out as a factor of attention results."""
    return lse.transpose(-1, -2)[..., None]
