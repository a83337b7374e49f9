"""The fusion of a sample's attention results: one function a weighting, forward and backward together.

Attention over one block of keys gives a result A and the log-sum-exp l of its scores. From the results over
each input (A_i, l_i) and over the output itself (A_o, l_o), pair i's exact attention over [K_i, K_y] is

    L_i = logaddexp(l_i, l_o)        O_i = exp(l_i - L_i) A_i + exp(l_o - L_i) A_o

and every weighting is a sum over i of O_i. For the gradient, a flash kernel's backward recomputes the softmax
of a block as exp(score - lse) and takes its row correction from `out`. Told the values of the *merged* softmax
instead of the block's own, it returns the exact gradient of the merge: so each weighting names, per block, the
`out`, `lse` and factor of the incoming gradient that its backward call must be given. (Differentiating this
merge by autograd would need a gradient of the kernel's lse, which flash kernels silently ignore.)

Kernels return lse in at least float32, so all merging is done there; only what is kept is rounded.
To add a weighting, write one function here and name it in `WEIGHTINGS`.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class BlockResult(NamedTuple):
    """What attention over one block of keys returned: the result and the scores' log-sum-exp."""

    out: Float[Tensor, "H T D"]
    lse: Float[Tensor, "H T"]


class BackwardValues(NamedTuple):
    """What a block's backward call is given in place of its own forward results.

    Attributes:
        out: The result whose inner product with the gradient corrects each row.
        lse: The log-sum-exp by which the block's scores are normalised.
        grad_factor: Factor of the incoming gradient.
    """

    out: Float[Tensor, "H T D"]
    lse: Float[Tensor, "H T"]
    grad_factor: float = 1.0


class Merged(NamedTuple):
    """The fused result of the output's queries, and what the backward call of each block is given."""

    out: Float[Tensor, "H T D"]
    inputs: list[BackwardValues]
    output: BackwardValues


def merge_uniform(inputs: list[BlockResult], output: BlockResult) -> Merged:
    """Equation 3 with Score_i = 1/n: O = sum_i w_i O_i.

    The output's keys take part in all n softmaxes. With p = softmax_i(log w_i - L_i) their n backward calls
    are one with out = sum_i p_i O_i and lse = -logsumexp_i(log w_i - L_i).
    """
    weight = 1.0 / len(inputs)
    pairs = [_pair(block, output) for block in inputs]
    out = sum_blocks(pair.out * weight for pair in pairs)
    lses = torch.stack([pair.lse for pair in pairs])
    p = torch.softmax(math.log(weight) - lses, dim=0)
    shared_out = sum_blocks(share[..., None] * pair.out for share, pair in zip(p, pairs, strict=True))
    shared_lse = -torch.logsumexp(math.log(weight) - lses, dim=0)
    dtype = output.out.dtype
    return Merged(
        out=out.to(dtype),
        inputs=[BackwardValues(pair.out.to(dtype), pair.lse, grad_factor=weight) for pair in pairs],
        output=BackwardValues(shared_out.to(dtype), shared_lse),
    )


def merge_fid(inputs: list[BlockResult], output: BlockResult) -> Merged:
    """Equation 7: O = sum_i softmax_i(L_i) O_i.

    This equals one softmax over all keys in which the output's own keys count n times.
    """
    own_lse = output.lse + math.log(len(inputs))
    return _one_softmax(inputs, output, own_lse, output_lse_shift=math.log(len(inputs)))


def merge_vanilla(inputs: list[BlockResult], output: BlockResult) -> Merged:
    """Equation 4: one softmax over [K_1 .. K_n, K_y], the baseline that dilutes the output's share."""
    return _one_softmax(inputs, output, output.lse, output_lse_shift=0.0)


WEIGHTINGS: dict[str, Callable[[list[BlockResult], BlockResult], Merged]] = {
    "uniform": merge_uniform,
    "fid": merge_fid,
    "vanilla": merge_vanilla,
}


def sum_blocks(terms: Iterator[Tensor]) -> Tensor:
    """Returns the sum of tensors, one at a time, so that only one term is alive besides the sum."""
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def _pair(block: BlockResult, output: BlockResult) -> BlockResult:
    """Pair i's exact attention over [K_i, K_y], from the attention over each."""
    lse = torch.logaddexp(block.lse, output.lse)
    out = _share(block.lse, lse) * block.out + _share(output.lse, lse) * output.out
    return BlockResult(out, lse)


def _one_softmax(inputs: list[BlockResult], output: BlockResult, own_lse: Tensor, output_lse_shift: float) -> Merged:
    lse = torch.logsumexp(torch.stack([*(block.lse for block in inputs), own_lse]), dim=0)
    out = sum_blocks(_share(block.lse, lse) * block.out for block in inputs)
    out = (out + _share(own_lse, lse) * output.out).to(output.out.dtype)
    shared = BackwardValues(out, lse)
    return Merged(out, [shared] * len(inputs), BackwardValues(out, lse - output_lse_shift))


def _share(lse: Tensor, total_lse: Tensor) -> Tensor:
    return torch.exp(lse - total_lse)[..., None]
