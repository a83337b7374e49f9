"""Scores of responses, and what they come to: no model and no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

NUM_BINS = 20


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A response with its score.

    Attributes:
        row: The dataset's row, from 0.
        id: The row's own.
        turn: Which of the row's scored responses, from 1.
        num_turns: How many the row has; those behind its longest length have no score.
        by_layer: The score at each layer that was looked at.
        num_user_tokens: User tokens in front of it.
        num_tokens: Its own that count.
        is_cut: It is longer than what was looked at.
        text: The user's text before it.
    """

    row: int
    id: str
    turn: int
    num_turns: int
    by_layer: tuple[float, ...]
    num_user_tokens: int
    num_tokens: int
    is_cut: bool
    text: str

    @property
    def score(self) -> float:
        """The mean over the layers."""
        return fmean(self.by_layer)

    def to_json(self) -> dict[str, Any]:
        """Returns the response's entry in the result file; its text is in the dataset."""
        return {
            "row": self.row,
            "id": self.id,
            "turn": self.turn,
            "score": self.score,
            "by_layer": list(self.by_layer),
            "user_tokens": self.num_user_tokens,
            "response_tokens": self.num_tokens,
            "is_cut": self.is_cut,
        }


@dataclass(frozen=True, slots=True)
class Dependency:
    """The scores of a dataset's responses.

    Attributes:
        layers: The layers that were looked at, from 1.
        threshold: A response above it depends on the context.
        responses: In the dataset's order.
        num_rows: Rows that were read.
        num_left_out: Rows of them without a score.
    """

    layers: tuple[int, ...]
    threshold: float
    responses: tuple[ScoredResponse, ...]
    num_rows: int
    num_left_out: int

    @property
    def scores(self) -> list[float]:
        """Of all responses."""
        return [response.score for response in self.responses]

    @property
    def share_above(self) -> float:
        """The share of responses above the threshold."""
        return share_above(self.scores, self.threshold)

    def at_layer(self, index: int) -> list[float]:
        """Returns all responses' scores at one of the layers, by its place in `layers`."""
        return [response.by_layer[index] for response in self.responses]

    def ranked(self) -> list[ScoredResponse]:
        """Returns the responses, the most dependent first."""
        return sorted(self.responses, key=lambda response: -response.score)

    def to_json(self) -> dict[str, Any]:
        """Returns the summary, the histogram and all scores, for the result file."""
        scores = self.scores
        return {
            "rows": self.num_rows,
            "rows_left_out": self.num_left_out,
            "responses": len(scores),
            "mean": fmean(scores),
            "median": median(scores),
            "share_above": self.share_above,
            "histogram": {"width": 1 / NUM_BINS, "counts": histogram(scores)},
            "by_layer": [
                {"layer": layer, "mean": fmean(found), "share_above": share_above(found, self.threshold)}
                for layer, found in ((layer, self.at_layer(i)) for i, layer in enumerate(self.layers))
            ],
            "scores": [response.to_json() for response in self.responses],
        }


def share_above(scores: Sequence[float], threshold: float) -> float:
    """Returns the share of scores above a threshold.

    >>> share_above([0.6, 0.61, 0.7, 0.1], 0.6)
    0.5
    """
    return sum(score > threshold for score in scores) / len(scores)


def histogram(scores: Sequence[float]) -> list[int]:
    """Returns how many scores fall into each of `NUM_BINS` parts of 0 to 1; rounding may carry a score past 1."""
    counts = [0] * NUM_BINS
    for score in scores:
        counts[min(int(score * NUM_BINS), NUM_BINS - 1)] += 1
    return counts
