"""Is a paired difference real? Bootstrap intervals, McNemar's exact test, sign flips and Holm's correction.

A prompt i contributes d_i = B_i - A_i, the difference of the two results' sums over its n_i parts; n_i = 1 where a
metric is one number a prompt. The difference of two figures is sum(d) / sum(n). Prompts are drawn, never parts, since
the parts of one response hang together. Where prompts hang together too, as questions on one text do, `cluster_sums`
comes first and i counts clusters: bootstrap and sign flips take each as one, and the standard error becomes the
clustered one (Miller, Adding Error Bars to Evals, arXiv 2411.00640, section 2.2; Cameron and Miller, A Practitioner's
Guide to Cluster-Robust Inference, 2015, with G / (G - 1) for the number of clusters G).
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
SEED = 0
# Two-sided, at 95 %.
CRITICAL_P = 0.05
NORMAL_QUANTILE = 1.96
# With five prompts that differ, all one way, McNemar's p is 2 / 2^5 = 0.0625.
FEWEST_DIFFERENT = 6

# Random numbers held at once: 16 MiB of indices, and as much for what they select.
_MAX_DRAWS = 2_000_000
# Above this sum of integer differences the exact distribution takes longer than sampling it.
_MAX_EXACT_TOTAL = 5_000

Floats = NDArray[np.float64]


def cluster_sums(values: Floats, clusters: Sequence[Hashable]) -> Floats:
    """Returns the sum of the values of each cluster, in the order in which the clusters come.

    >>> cluster_sums(np.array([1.0, 0.0, -1.0, 1.0]), ["x", "y", "y", "x"]).tolist()
    [2.0, -1.0]
    """
    places: dict[Hashable, int] = {}
    at = [places.setdefault(cluster, len(places)) for cluster in clusters]
    sums = np.zeros(len(places))
    np.add.at(sums, at, values)
    return sums


def bootstrap_interval(
    differences: Floats, numbers: Floats, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of sum(d) / sum(n) over resampled prompts.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.

    Args:
        differences: d of each prompt.
        numbers: n of each prompt, above 0.
        num_resamples: How often the prompts are drawn anew, with replacement.
        seed: Of the draws: the same data give the same interval.
    """
    generator = np.random.default_rng(seed)
    num_prompts = len(differences)
    block = max(1, _MAX_DRAWS // num_prompts)
    found: list[Floats] = []
    for start in range(0, num_resamples, block):
        drawn = generator.integers(num_prompts, size=(min(block, num_resamples - start), num_prompts))
        found.append(differences[drawn].sum(axis=1) / numbers[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return float(low), float(high)


def standard_error(differences: Floats, numbers: Floats) -> float:
    """Returns the standard error of sum(d) / sum(n), linearised as a ratio's (Cochran, 1977, 6.4); 0 for one prompt."""
    num_prompts = len(differences)
    if num_prompts < 2:
        return 0.0
    residuals = differences - numbers * (differences.sum() / numbers.sum())
    return math.sqrt(num_prompts / (num_prompts - 1) * float(residuals @ residuals)) / float(numbers.sum())


def mcnemar_p(num_only_a: int, num_only_b: int) -> float:
    """Returns the two-sided p value of McNemar's exact test: the discordant prompts are throws of a fair coin.

    >>> mcnemar_p(0, 0), mcnemar_p(1, 1), mcnemar_p(0, 6)
    (1.0, 1.0, 0.03125)
    """
    num_discordant = num_only_a + num_only_b
    ways, tail = 1, 0
    for k in range(min(num_only_a, num_only_b) + 1):
        tail += ways
        ways = ways * (num_discordant - k) // (k + 1)
    return min(1.0, 2 * tail / 2**num_discordant)


def sign_flip_p(differences: Floats, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> float:
    """Returns the two-sided p value of the paired permutation test on sum(d): each prompt's A and B could be exchanged.

    Exact where the differences are whole numbers, as they are for verdicts; else sampled, with the observed signs
    counted as one of the samples (Phipson and Smyth, 2010).

    Args:
        differences: d of each prompt.
        num_resamples: Draws of signs, where they are sampled.
        seed: Of those draws.
    """
    sizes = np.abs(differences[differences != 0])
    observed = abs(float(differences.sum()))
    if np.array_equal(sizes, np.rint(sizes)) and sizes.sum() <= _MAX_EXACT_TOTAL:
        return _exact_sign_flip_p(sizes.astype(int).tolist(), round(observed))
    generator = np.random.default_rng(seed)
    block = max(1, _MAX_DRAWS // len(sizes))
    # Sums in another order differ in their last digits.
    least = observed - 1e-9 * float(sizes.sum())
    num_reached = 0
    for start in range(0, num_resamples, block):
        signs = 2.0 * generator.integers(2, size=(min(block, num_resamples - start), len(sizes))) - 1
        num_reached += int(np.count_nonzero(np.abs(signs @ sizes) >= least))
    return (1 + num_reached) / (1 + num_resamples)


def _exact_sign_flip_p(sizes: Sequence[int], observed: int) -> float:
    chances = np.ones(1)  # of the sums from -t to t, where t is the total of the sizes so far
    for size in sizes:
        grown = np.zeros(len(chances) + 2 * size)
        grown[: len(chances)] += chances / 2
        grown[2 * size :] += chances / 2
        chances = grown
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= observed].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number (Holm, 1979), in the same order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected
