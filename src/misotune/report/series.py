"""Curves: few enough points to draw, however many were measured, and a smooth line through them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A picture is some 500 points wide.
MOST_POINTS = 400
# The smooth line forgets in this share of the steps.
_MEMORY = 0.03
_FEWEST_TO_SMOOTH = 12
_MOST_SMOOTHED = 8 * MOST_POINTS
# Values between these quantiles are usual ones; the others are spikes.
USUAL = (0.005, 0.995)


@dataclass(frozen=True, slots=True)
class Point:
    """What a few neighbouring lines of metrics come to.

    Attributes:
        step: The last of their steps.
        mean: Of their finite values.
        low: The least of them.
        high: The greatest of them.
    """

    step: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One value over the steps.

    Attributes:
        name: For the legend.
        points: In the order of steps; none where no value is finite.
        smooth: (step, value) of the smooth line; the values themselves where they are few.
        not_finite: Steps at which it was measured and was not finite.
    """

    name: str
    points: list[Point]
    smooth: list[tuple[float, float]]
    not_finite: list[float]

    @property
    def last(self) -> float:
        """The smooth line's end; NaN: no value is finite."""
        return self.smooth[-1][1] if self.smooth else math.nan


def make_curve(name: str, steps: Sequence[float], values: Sequence[float], *, is_smooth: bool = True) -> Curve:
    """Returns the curve of a column of metrics.

    Args:
        name: For the legend.
        steps: Of each value.
        values: Of each line of metrics, or of those that have one.
        is_smooth: Whether to draw a smooth line; else one through all points.
    """
    pairs = list(zip(steps, values, strict=True))
    known = [pair for pair in pairs if math.isfinite(pair[1])]
    not_finite = [step for step, value in pairs if not math.isfinite(value)] if len(known) < len(pairs) else []
    points = decimate(known, MOST_POINTS)
    if not is_smooth or len(known) < _FEWEST_TO_SMOOTH:
        return Curve(name, points, [(point.step, point.mean) for point in points], not_finite[:MOST_POINTS])
    if len(known) > _MOST_SMOOTHED:
        known = [(point.step, point.mean) for point in decimate(known, _MOST_SMOOTHED)]
    # A single spike must not stay in the smooth line for long.
    low, high = (quantile([value for _, value in known], share) for share in USUAL)
    clipped = [(step, min(max(value, low), high)) for step, value in known]
    smooth = decimate(smoothed(clipped, max(2.0, _MEMORY * len(known))), MOST_POINTS)
    return Curve(name, points, [(point.step, point.mean) for point in smooth], not_finite[:MOST_POINTS])


def decimate(known: Sequence[tuple[float, float]], most: int) -> list[Point]:
    """Returns at most so many points, each of as many neighbours.

    >>> decimate([(1, 4.0), (2, 2.0), (3, 9.0)], 2)
    [Point(step=2, mean=3.0, low=2.0, high=4.0), Point(step=3, mean=9.0, low=9.0, high=9.0)]
    """
    size = max(1, -(-len(known) // most))
    points: list[Point] = []
    for start in range(0, len(known), size):
        part = known[start : start + size]
        values = [value for _, value in part]
        points.append(Point(part[-1][0], math.fsum(values) / len(values), min(values), max(values)))
    return points


def smoothed(known: Sequence[tuple[float, float]], memory: float) -> list[tuple[float, float]]:
    """Returns the exponential moving average of values, without a bias towards the first one.

    Args:
        known: (step, value).
        memory: Number of values in which the weight of one falls to 1/e.
    """
    decay = math.exp(-1 / memory)
    total = weight = 0.0
    smooth: list[tuple[float, float]] = []
    for step, value in known:
        total = decay * total + value
        weight = decay * weight + 1
        smooth.append((step, total / weight))
    return smooth


def quantile(values: Sequence[float], share: float) -> float:
    """Returns a quantile of finite values, by nearest rank; NaN: there are none."""
    known = sorted(value for value in values if math.isfinite(value))
    return known[min(int(share * len(known)), len(known) - 1)] if known else math.nan
