"""Whether constraints that are met draw more attention than those that are not (the MISO paper's figure 1b).

Constraints of one row share a response, so that rows are what is independent: every standard error is clustered by row
(Cameron and Miller, A Practitioner's Guide to Cluster-Robust Inference, 2015, with G / (G - 1) for G rows).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from misotune.analysis.attention.summary import ModelShares

MEASURES = ("share", "share per token")
"""A constraint's share of the response's attention, and the same by its tokens: a longer one has a larger share."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or a difference of means, by layer or alone.

    Attributes:
        value: The estimate.
        error: Its standard error, clustered by row; None with fewer than two rows.
    """

    value: Float[Tensor, "..."]
    error: Float[Tensor, "..."] | None

    def to_json(self) -> dict[str, Any]:
        """Returns both as numbers or lists."""
        return {"value": self.value.tolist(), "std_error": None if self.error is None else self.error.tolist()}


@dataclass(frozen=True, slots=True)
class Contrast:
    """Constraints that are met beside those that are not, in one model and one measure.

    Attributes:
        met: Their mean; None without any.
        not_met: The same of those that are not met.
        difference: Met less not met; None where one of them is missing.
    """

    met: Estimate | None
    not_met: Estimate | None
    difference: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """Returns the three."""
        names = ("met", "not_met", "difference")
        found = (self.met, self.not_met, self.difference)
        return {name: x and x.to_json() for name, x in zip(names, found, strict=True)}


def has_both_verdicts(models: Sequence[ModelShares]) -> bool:
    """Returns whether some model meets some of the constraints, and misses others."""
    return any({True, False} <= {x.is_met for _, x in model.constraints()} for model in models)


def contrast(model: ModelShares, measure: str, *, by_layer: bool = False) -> Contrast:
    """Compares a model's constraints by verdict; what is not verified is left out.

    Args:
        model: The model's rows.
        measure: One of `MEASURES`.
        by_layer: One number a layer, the mean over heads; else over layers too.
    """
    found = [(row, x) for row, x in model.constraints() if x.is_met is not None]
    if not found:
        return Contrast(None, None, None)
    means = torch.stack([x.shares.double().mean(dim=1) for _, x in found])
    if measure == "share per token":
        # A constraint without a token of its own has no share either.
        means = means / torch.tensor([[max(x.num_tokens, 1)] for _, x in found])
    values = means if by_layer else means.mean(dim=1)
    rows = {id(row): at for at, row in enumerate(model.rows)}
    return contrast_of(values, [x.is_met is True for _, x in found], [rows[id(row)] for row, _ in found])


def contrast_of(values: Float[Tensor, "C ..."], is_met: Sequence[bool], rows: Sequence[Hashable]) -> Contrast:
    """Compares the values of C constraints by verdict.

    Args:
        values: Of each constraint.
        is_met: Its verdict.
        rows: Its row.
    """
    places = {row: at for at, row in enumerate(dict.fromkeys(rows))}
    at = torch.tensor([places[row] for row in rows])
    verdicts = torch.tensor(is_met)
    met, not_met = (_mean(values, chosen, at) for chosen in (verdicts, ~verdicts))
    if met is None or not_met is None:
        return Contrast(met and _estimate(*met), not_met and _estimate(*not_met), None)
    difference = _estimate(met[0] - not_met[0], met[1] - not_met[1])
    return Contrast(_estimate(*met), _estimate(*not_met), difference)


_Mean = tuple[Float[Tensor, "..."], Float[Tensor, "R ..."]]


def _mean(values: Tensor, chosen: Tensor, rows: Tensor) -> _Mean | None:
    """The mean of the chosen values, and what each row adds to its error; rows without a chosen one add nothing."""
    num = int(chosen.sum())
    if not num:
        return None
    mean = values[chosen].mean(dim=0)
    influence = values.new_zeros(int(rows.max()) + 1, *values.shape[1:])
    return mean, influence.index_add(0, rows[chosen], (values[chosen] - mean) / num)


def _estimate(value: Tensor, influence: Tensor) -> Estimate:
    num_rows = len(influence)
    if num_rows < 2:
        return Estimate(value, None)
    return Estimate(value, (influence.square().sum(dim=0) * num_rows / (num_rows - 1)).sqrt())
