"""All seeds of a variant against another, out of the verdicts that results keep.

A prompt counts once, with the verdicts of all seeds: they are answers to the same question. Interval and test are over
prompts, as those of `misotune compare`, and take the seeds as they are: whether others would do the same is for the
standard error over seeds to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.study.pieces import IFEVAL
from benchmarks.study.results import Record

from misotune.evaluation.comparison.statistics import bootstrap_interval, sign_flip_p


@dataclass(frozen=True, slots=True)
class Together:
    """The difference of instruction strict on IFEval, as a share, with its 95 % interval and p value."""

    num_seeds: int
    difference: float
    low: float
    high: float
    p: float


def seeds_together(ours: Sequence[Record], theirs: Sequence[Record]) -> Together | None:
    """Returns the difference of all seeds; None where a result keeps no verdicts.

    Args:
        ours: Results of a variant, one a seed.
        theirs: Of what it is compared with, seed by seed; the base model's stands for every seed.
    """
    pairs = list(zip(ours, theirs, strict=True))
    if not pairs or not all("verdicts" in record["scores"][IFEVAL] for pair in pairs for record in pair):
        return None
    met = np.array([[_met(record) for record in pair] for pair in pairs], dtype=float)  # seeds, two, prompts
    numbers = np.array([len(word) for word in _words(ours[0])], dtype=float) * len(pairs)
    differences = (met[:, 0] - met[:, 1]).sum(axis=0)
    low, high = bootstrap_interval(differences, numbers)
    return Together(len(pairs), float(differences.sum() / numbers.sum()), low, high, sign_flip_p(differences))


def _words(record: Record) -> list[str]:
    return record["scores"][IFEVAL]["verdicts"]["strict"].split(" ")


def _met(record: Record) -> list[int]:
    return [word.count("1") for word in _words(record)]
