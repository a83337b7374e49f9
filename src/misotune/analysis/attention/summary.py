"""The shares of a response's attention: of rows, and of a model over all of its rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from misotune.analysis.attention.parts import CONSTRAINTS, PARTS


@dataclass(frozen=True, slots=True)
class ConstraintShare:
    """One constraint of a row.

    Attributes:
        text: The constraint.
        num_tokens: Its tokens in the prompt.
        is_met: The verdict on the response; None: not verified.
        shares: Of the response's attention.
    """

    text: str
    num_tokens: int
    is_met: bool | None
    shares: Float[Tensor, "L H"]

    @property
    def share(self) -> float:
        """Mean over layers and heads."""
        return self.shares.mean().item()


@dataclass(frozen=True, slots=True)
class RowShares:
    """One row.

    Attributes:
        id: The row's.
        response: What was read as the response.
        num_tokens: Tokens of each of `PARTS`.
        shares: Of the response's attention, for each of `PARTS`: P of them.
        constraints: Each by itself; their shares sum to that of CONSTRAINTS.
    """

    id: str
    response: str
    num_tokens: tuple[int, ...]
    shares: Float[Tensor, "L H P"]
    constraints: tuple[ConstraintShare, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns means over layers and heads."""
        return {
            "id": self.id,
            "response": self.response,
            "num_tokens": dict(zip(PARTS, self.num_tokens, strict=True)),
            "mean_share": dict(zip(PARTS, self.shares.mean(dim=(0, 1)).tolist(), strict=True)),
            "constraints": [
                {"text": x.text, "num_tokens": x.num_tokens, "is_met": x.is_met, "share": x.share}
                for x in self.constraints
            ],
        }


@dataclass(frozen=True, slots=True)
class VerdictShares:
    """The constraints with one verdict.

    Attributes:
        num_constraints: How many.
        num_tokens: Mean tokens of one.
        shares: Mean share of one; None without any.
    """

    num_constraints: int
    num_tokens: float
    shares: Float[Tensor, "L H"] | None

    def to_json(self) -> dict[str, Any]:
        """Returns numbers, means and every layer and head."""
        shares = self.shares
        return {
            "num_constraints": self.num_constraints,
            "mean_num_tokens": self.num_tokens,
            "mean_share": None if shares is None else shares.mean().item(),
            "share_by_layer_and_head": None if shares is None else shares.tolist(),
        }


@dataclass(frozen=True, slots=True)
class ModelShares:
    """One model's shares over its rows, of which there is at least one.

    Attributes:
        name: What to call the model.
        compute: Its device and type.
        rows: In the order of the data.
    """

    name: str
    compute: dict[str, str]
    rows: tuple[RowShares, ...]

    @property
    def shares(self) -> Float[Tensor, "L H P"]:
        """The mean over rows, for each of `PARTS`."""
        return torch.stack([row.shares for row in self.rows]).mean(dim=0)

    @property
    def mean(self) -> dict[str, float]:
        """The share of each part, a mean over rows, layers and heads."""
        return dict(zip(PARTS, self.shares.mean(dim=(0, 1)).tolist(), strict=True))

    @property
    def spread(self) -> dict[str, float]:
        """The standard deviation over rows of the mean over layers and heads; 0 for one row."""
        means = torch.stack([row.shares.mean(dim=(0, 1)) for row in self.rows])
        return dict(zip(PARTS, means.std(dim=0, correction=0).tolist(), strict=True))

    @property
    def num_tokens(self) -> dict[str, float]:
        """Mean tokens of each part."""
        means = torch.tensor([row.num_tokens for row in self.rows], dtype=torch.float64).mean(dim=0)
        return dict(zip(PARTS, means.tolist(), strict=True))

    @property
    def has_constraints(self) -> bool:
        """Whether any row has some."""
        return any(row.constraints for row in self.rows)

    def constraints(self) -> Iterator[tuple[RowShares, ConstraintShare]]:
        """Yields every constraint with its row."""
        for row in self.rows:
            for constraint in row.constraints:
                yield row, constraint

    def by_verdict(self, is_met: bool | None) -> VerdictShares:
        """Returns the constraints with a verdict: met, not met, or not verified."""
        found = [x for _, x in self.constraints() if x.is_met is is_met]
        if not found:
            return VerdictShares(0, 0.0, None)
        num_tokens = sum(x.num_tokens for x in found) / len(found)
        return VerdictShares(len(found), num_tokens, torch.stack([x.shares for x in found]).mean(dim=0))

    def to_json(self) -> dict[str, Any]:
        """Returns means, spreads and every layer and head; layers and heads count from 1 in all that is shown."""
        shares = self.shares
        by_part = dict(zip(PARTS, shares.unbind(dim=2), strict=True))
        return {
            "name": self.name,
            **self.compute,
            "num_tokens": self.num_tokens,
            "mean_share": self.mean,
            "std_over_rows": self.spread,
            "share_by_layer": {name: x.mean(dim=1).tolist() for name, x in by_part.items()},
            "share_by_layer_and_head": {name: x.tolist() for name, x in by_part.items()},
            "constraints": {
                name: self.by_verdict(verdict).to_json()
                for name, verdict in (("met", True), ("not_met", False), ("not_verified", None))
            },
            "rows": [row.to_json() for row in self.rows],
        }


def sum_up(shares: Float[Tensor, "L H Q"], num_tokens: Sequence[int]) -> tuple[Float[Tensor, "L H P"], list[int]]:
    """Returns the shares and tokens of `PARTS` from those where each constraint is a part behind them."""
    n = len(PARTS)
    total, tokens = shares[..., :n].clone(), list(num_tokens[:n])
    total[..., CONSTRAINTS] += shares[..., n:].sum(dim=2)
    tokens[CONSTRAINTS] += sum(num_tokens[n:])
    return total, tokens
