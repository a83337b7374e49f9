"""How the output's share of attention changes with the number of inputs (the paper's section 4.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from misotune.analysis.dilution.observed import output_shares
from misotune.analysis.rows import AnalysedRow
from misotune.errors import UsageError

MEASURED = ("vanilla", "uniform", "fid")
"""The weightings that are compared: the baseline, which dilutes the output, and the paper's two."""


@dataclass(frozen=True, slots=True)
class Dilution:
    """The output's share of attention, a mean over heads and output tokens, for R rows and L layers.

    Attributes:
        counts: The numbers of inputs n, ascending; the first is 1.
        shares: For each weighting, between 0 and 1, in the order of `counts`.
    """

    counts: tuple[int, ...]
    shares: dict[str, Float[Tensor, "R N L"]]

    @property
    def num_layers(self) -> int:
        """L."""
        return self.shares[MEASURED[0]].shape[2]

    def by_layer(self, weighting: str) -> Float[Tensor, "N L"]:
        """Returns the mean over rows."""
        return self.shares[weighting].mean(dim=0)

    def mean(self, weighting: str) -> Float[Tensor, "N"]:
        """Returns the mean over rows and layers."""
        return self.by_layer(weighting).mean(dim=1)

    def spread(self, weighting: str) -> Float[Tensor, "N"]:
        """Returns the standard deviation over rows of the mean over layers; 0 for one row."""
        return self.shares[weighting].mean(dim=2).std(dim=0, correction=0)

    def to_json(self) -> dict[str, Any]:
        """Returns means, spreads and the mean of each layer; layers count from 1 in all that is shown."""
        return {
            "num_inputs": list(self.counts),
            "mean_share": {name: self.mean(name).tolist() for name in self.shares},
            "std_over_rows": {name: self.spread(name).tolist() for name in self.shares},
            "share_by_layer": {name: self.by_layer(name).tolist() for name in self.shares},
        }


def input_counts(most: int) -> tuple[int, ...]:
    """Returns the numbers of inputs that are measured: powers of two, and the largest number itself.

    >>> input_counts(12)
    (1, 2, 4, 8, 12)

    Raises:
        UsageError: `most` is below 2.
    """
    if most < 2:
        raise UsageError(f"--max-inputs {most}: the output's share changes from 2 inputs on")
    return (*(2**i for i in range((most - 1).bit_length())), most)


def measure_dilution(
    model: Any,
    rows: Sequence[AnalysedRow],
    counts: tuple[int, ...],
    *,
    is_repeated: bool = False,
    on_row: Callable[[int], None] = lambda _: None,
) -> Dilution:
    """Returns the output's share of attention for each weighting and number of inputs.

    Args:
        model: A causal language model, loaded with any attention.
        rows: The rows; their own responses are the outputs.
        counts: Numbers of inputs, ascending from 1.
        is_repeated: n times the row's first input, instead of n of its inputs.
        on_row: Called with the number of rows done.
    """
    per_row: dict[str, list[Tensor]] = {name: [] for name in MEASURED}
    for done, row in enumerate(rows, start=1):
        sample = row.with_inputs(counts[-1], is_repeated=is_repeated).encoded
        shares = output_shares(model, sample, counts, MEASURED)
        for name in MEASURED:
            means = [shares[n, name].double().mean(dim=(1, 2)) for n in counts]
            per_row[name].append(torch.stack(means))
        on_row(done)
    return Dilution(counts, {name: torch.stack(values) for name, values in per_row.items()})
