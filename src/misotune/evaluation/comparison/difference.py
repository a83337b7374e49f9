"""One figure of two results: how far apart they are, and whether that is more than noise."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from misotune.evaluation.comparison.metrics import Sample, cluster_of
from misotune.evaluation.comparison.statistics import (
    CRITICAL_P,
    FEWEST_DIFFERENT,
    NORMAL_QUANTILE,
    Floats,
    bootstrap_interval,
    cluster_sums,
    holm,
    mcnemar_p,
    sign_flip_p,
    standard_error,
)

MCNEMAR, SIGN_FLIP, CLUSTER_FLIP = "McNemar, exact", "sign flips", "sign flips of clusters"


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference B - A of one figure, over all prompts or some of them; shares of 1.

    Attributes:
        label: Which prompts or parts: a constraint type, say; "all" for all of them.
        metric: The metric's name in `samples.jsonl`.
        num_prompts: Prompts that it is taken over.
        num_parts: Parts (constraints, questions) of those prompts; None where the metric is one number a prompt.
        a: The figure of the first result.
        b: The figure of the second one.
        low: Lower end of the 95 % interval of B - A.
        high: Its upper end.
        num_a_higher: Prompts on which A scores higher.
        num_b_higher: Prompts on which B does.
        noise: Half the width of what chance alone brings about in 95 of 100 cases: 1.96 standard errors. With the
            exact tests also no less than six prompts' worth. None: so few prompts can show no difference at all.
            Of prompts in clusters, clusters count in place of prompts.
        test: What `p` comes from.
        p: Probability of such a difference, or a larger one, if both were equally good.
        corrected_p: Holm's for the number of lines in a table of parts; None where there was one question only.
        num_clusters: Clusters that the prompts make up, which interval, noise and test take as one each; None: every
            prompt stands alone.
    """

    label: str
    metric: str
    num_prompts: int
    num_parts: int | None
    a: float
    b: float
    low: float
    high: float
    num_a_higher: int
    num_b_higher: int
    noise: float | None
    test: str
    p: float
    corrected_p: float | None = None
    num_clusters: int | None = None

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a

    @property
    def decisive_p(self) -> float:
        """The p value that the verdict goes by."""
        return self.p if self.corrected_p is None else self.corrected_p

    @property
    def better(self) -> Literal["a", "b"] | None:
        """Which one is better; None where the difference is within the noise."""
        if self.decisive_p >= CRITICAL_P or self.low <= 0 <= self.high:
            return None
        return "b" if self.difference > 0 else "a"

    def to_json(self, letters: tuple[str, str]) -> dict[str, Any]:
        """Returns the entry of `comparison.json`."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "difference": self.difference, "verdict": verdict(self, letters)}


def verdict(difference: Difference, letters: tuple[str, str]) -> str:
    """Returns the verdict in words; `letters` are what the two results are called."""
    if difference.better is None:
        return "within the noise"
    return f"{letters[0] if difference.better == 'a' else letters[1]} is better"


def differences_of(
    pairs: Sequence[tuple[Sample, Sample]], metrics: Sequence[str], label: str = "all", *, part: str | None = None
) -> list[Difference]:
    """Returns the difference of each metric that the pairs have.

    Args:
        pairs: The rows of both results, prompt by prompt.
        metrics: Which metrics.
        label: What to call these prompts.
        part: Only the parts of this type, of metrics that have parts; None for all parts and metrics.
    """
    found: list[Difference] = []
    for metric in metrics:
        with_scores = [pair for pair in pairs if _scores(pair[0], metric, part)]
        if with_scores:
            scored = [(_scores(a, metric, part), _scores(b, metric, part)) for a, b in with_scores]
            has_parts = any(isinstance(a.values.get(metric), tuple) for a, _ in pairs)
            clusters = [cluster_of(a, b) for a, b in with_scores]
            found.append(_difference(scored, clusters, label, metric, has_parts=has_parts))
    return found


def correct(table: Sequence[Difference]) -> list[Difference]:
    """Returns the lines of one table with p values corrected for the number of lines of the same metric."""
    corrected: dict[int, float] = {}
    for metric in dict.fromkeys(line.metric for line in table):
        places = [at for at, line in enumerate(table) if line.metric == metric]
        corrected |= dict(zip(places, holm([table[at].p for at in places]), strict=True))
    return [replace(line, corrected_p=corrected[at]) for at, line in enumerate(table)]


def is_verdict(pairs: Sequence[tuple[Sample, Sample]], metric: str) -> bool:
    """Returns whether a metric is one number a prompt, 0 or 1."""
    values = {sample.values[metric] for pair in pairs for sample in pair if metric in sample.values}
    return values <= {0.0, 1.0}


def _scores(sample: Sample, metric: str, part: str | None) -> tuple[float, ...]:
    value = sample.values.get(metric, ())
    if not isinstance(value, tuple):
        return () if part is not None else (value,)
    if part is None:
        return value
    return tuple(score for score, label in zip(value, sample.types, strict=False) if label == part)


def _difference(
    scored: Sequence[tuple[tuple[float, ...], tuple[float, ...]]],
    clusters: Sequence[Hashable],
    label: str,
    metric: str,
    *,
    has_parts: bool,
) -> Difference:
    sums_a: Floats = np.array([sum(a) for a, _ in scored])
    sums_b: Floats = np.array([sum(b) for _, b in scored])
    numbers: Floats = np.array([float(len(a)) for a, _ in scored])
    differences = sums_b - sums_a
    number = float(numbers.sum())
    num_a_higher, num_b_higher = int((differences < 0).sum()), int((differences > 0).sum())
    are_verdicts = all(score in (0, 1) for pair in scored for scores in pair for score in scores)
    differences, numbers = cluster_sums(differences, clusters), cluster_sums(numbers, clusters)
    are_clustered = len(differences) < len(scored)
    # The coins of McNemar's test are thrown one by one, which those of a cluster are not.
    by_mcnemar = are_verdicts and not has_parts and not are_clustered
    low, high = bootstrap_interval(differences, numbers)
    noise = max(
        NORMAL_QUANTILE * standard_error(differences, numbers), FEWEST_DIFFERENT / number if are_verdicts else 0.0
    )
    return Difference(
        label=label,
        metric=metric,
        num_prompts=len(scored),
        num_parts=int(number) if has_parts else None,
        a=float(sums_a.sum()) / number,
        b=float(sums_b.sum()) / number,
        low=low,
        high=high,
        num_a_higher=num_a_higher,
        num_b_higher=num_b_higher,
        noise=noise if len(differences) >= FEWEST_DIFFERENT else None,
        test=MCNEMAR if by_mcnemar else CLUSTER_FLIP if are_clustered else SIGN_FLIP,
        p=mcnemar_p(num_a_higher, num_b_higher) if by_mcnemar else sign_flip_p(differences),
        num_clusters=len(differences) if are_clustered else None,
    )
