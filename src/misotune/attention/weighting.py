"""How the attention results of a sample's inputs are fused: the one place that says what a weighting is.

Every weighting of the paper has one form. Join the inputs into groups, let the output's own keys count
`output_copies` times in each group's softmax, and take a weighted mean over the groups:

    L_g = logaddexp(l_g, l_o + log copies)                       the log-sum-exp of group g and the output
    O_g = exp(l_g - L_g) A_g + exp(l_o + log copies - L_g) A_o   its attention result
    O   = sum_g w_g O_g

                 groups                 w_g    copies    the paper
    uniform      every input by itself  1/n    1         equation 3 with Score_i = 1/n
    fixed        every input by itself  given  1         equation 3 with any constants Score_i
    fid          all inputs in one      1      n         equation 7
    vanilla      all inputs in one      1      1         equation 4, the baseline that dilutes the output

(fid: Score_i = (S_i + S_out) / sum_j (S_j + S_out) makes the sum of pairs one softmax over all keys in which
each of the n pairs brings the output's keys along.) Weights that are learned, or computed from the scores in
another way, are out of scope: they have gradients of their own, which the merge does not compute.

To add a weighting, write one function here and name it in `WEIGHTINGS`.
"""

from collections.abc import Callable
from typing import NamedTuple

from misotune.attention.spans import SampleSpans, Span


class Fusion(NamedTuple):
    """How one sample's results are fused.

    Attributes:
        groups: The inputs of each group, side by side.
        weights: Each group's weight in the mean.
        output_copies: How often the output's own keys count in each group's softmax.
    """

    groups: tuple[tuple[Span, ...], ...]
    weights: tuple[float, ...]
    output_copies: int


def uniform(sample: SampleSpans) -> Fusion:
    """Equation 3 with Score_i = 1/n."""
    n = len(sample.inputs)
    return Fusion(tuple((x,) for x in sample.inputs), (1.0 / n,) * n, 1)


def fixed(sample: SampleSpans) -> Fusion:
    """Equation 3 with the sample's own constants.

    Raises:
        ValueError: Not one positive weight for each input, or a sum other than 1.
    """
    if not sample.weights:
        return uniform(sample)
    weights = sample.weights
    if len(weights) != len(sample.inputs) or not min(weights) > 0 or not abs(sum(weights) - 1) < 1e-6:
        raise ValueError(f"a sample of {len(sample.inputs)} inputs needs as many positive weights of sum 1: {weights}")
    return Fusion(tuple((x,) for x in sample.inputs), weights, 1)


def fid(sample: SampleSpans) -> Fusion:
    """Equation 7."""
    return Fusion((sample.inputs,), (1.0,), len(sample.inputs))


def vanilla(sample: SampleSpans) -> Fusion:
    """Equation 4."""
    return Fusion((sample.inputs,), (1.0,), 1)


WEIGHTINGS: dict[str, Callable[[SampleSpans], Fusion]] = {
    "uniform": uniform,
    "fixed": fixed,
    "fid": fid,
    "vanilla": vanilla,
}


def require_weighting(name: str) -> None:
    """Raises ValueError, with the known names, unless `name` is one of them."""
    if name not in WEIGHTINGS:
        raise ValueError(f"weighting {name!r} is not one of {', '.join(WEIGHTINGS)}")
