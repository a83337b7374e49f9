"""A packed row: where its samples lie, each token's position, and which tokens are trained.

A row holds its samples one after the other, and each sample its inputs, then its output:

    x_1 | x_2 | ... | x_n | y || x_1 | ... | y || ...
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from misotune.attention.spans import SampleSpans, Span
from misotune.layout.encoding import EncodedSample

Positions = Literal["aligned", "start", "successive"]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where the samples of a packed row lie, and how their positions count (the paper's section 4.1).

    Attributes:
        samples: The samples in order; together they cover the row.
        positions: `aligned`: every input ends at position L-1, L the longest input, and the output starts at
            L, so that it follows each of them at once. `start`: inputs start at 0, the output at L, with a gap
            behind the shorter ones. `successive`: positions run on from input to input to output.
    """

    samples: tuple[SampleSpans, ...]
    positions: Positions = "aligned"

    @classmethod
    def from_lengths(
        cls,
        lengths: Sequence[tuple[Sequence[int], int]],
        positions: Positions = "aligned",
        weights: Sequence[tuple[float, ...]] | None = None,
    ) -> "RowLayout":
        """Returns the layout of a row from (input lengths, output length) of each sample.

        Args:
            lengths: Of each sample.
            positions: How positions count.
            weights: Each sample's weights under the weighting `fixed`; None: equal ones.

        Raises:
            ValueError: A sample without inputs, or a length below one.

        >>> layout = RowLayout.from_lengths([([2, 3], 2), ([1], 1)])
        >>> layout.samples[0].inputs
        (Span(start=0, stop=2), Span(start=2, stop=5))
        >>> layout.samples[0].output
        Span(start=5, stop=7)
        >>> layout.position_ids.tolist()
        [1, 2, 0, 1, 2, 3, 4, 0, 1]
        """
        samples: list[SampleSpans] = []
        start = 0
        for (input_lengths, output_length), own in zip(lengths, weights or [()] * len(lengths), strict=True):
            if not input_lengths or min(*input_lengths, output_length, output_length) < 1:
                raise ValueError(f"a sample needs inputs and an output, got lengths {input_lengths}, {output_length}")
            stops = [start]
            for length in (*input_lengths, output_length):
                stops.append(stops[-1] + length)
            spans = [Span(start, stop) for start, stop in pairwise(stops)]
            samples.append(SampleSpans(tuple(spans[:-1]), spans[-1], own))
            start = stops[-1]
        return cls(tuple(samples), positions)

    @property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return self.samples[-1].output.stop if self.samples else 0

    @property
    def position_ids(self) -> Int[Tensor, "T"]:
        """The position of every token."""
        return torch.cat([part for sample in self.samples for part in _positions(sample, self.positions)])


@dataclass(frozen=True, slots=True)
class PackedRow:
    """What a forward call needs for one packed row.

    Attributes:
        input_ids: Token ids, shape (1, T).
        position_ids: Positions, shape (1, T).
        layout: Where the samples lie.
        predictors: Indices of the tokens whose prediction is trained: those before each trained token. The
            language-model head is computed there and nowhere else (`logits_to_keep`).
        targets: The trained token ids, one for each predictor.
    """

    input_ids: Int[Tensor, "1 T"]
    position_ids: Int[Tensor, "1 T"]
    layout: RowLayout
    predictors: Int[Tensor, "P"]
    targets: Int[Tensor, "P"]


def build_row(
    samples: Sequence[EncodedSample], positions: Positions = "aligned", shares: Mapping[str, float] | None = None
) -> PackedRow:
    """Returns the packed row of encoded samples, in their order.

    Args:
        samples: The samples.
        positions: How positions count.
        shares: Of roles, for the weighting `fixed` (`input_weights`); None: equal weights.
    """
    lengths = [(list(map(len, s.inputs)), len(s.output)) for s in samples]
    weights = [input_weights(s.roles, shares) for s in samples] if shares else None
    layout = RowLayout.from_lengths(lengths, positions, weights)
    ids = np.concatenate([part for s in samples for part in (*s.inputs, s.output)])
    flags = [part for s in samples for part in (np.zeros(s.num_input_tokens, dtype=bool), s.is_trained)]
    trained = torch.as_tensor(np.concatenate(flags).nonzero()[0])
    input_ids = torch.as_tensor(ids.astype(np.int64))
    return PackedRow(
        input_ids=input_ids[None],
        position_ids=layout.position_ids[None],
        layout=layout,
        # An output begins with the generation prompt, which is never trained: its first trained token has a
        # predictor inside the same output.
        predictors=trained - 1,
        targets=input_ids[trained],
    )


def input_weights(roles: Sequence[str], shares: Mapping[str, float]) -> tuple[float, ...]:
    """Returns each input's weight, with sum 1, from the shares of roles; empty: equal weights.

    A role's share is divided equally among the inputs of that role, and what the shares leave of 1 among the
    inputs of all other roles. Where the sample lacks a role, the weights are scaled to sum 1.

    >>> input_weights(["full", "constraint", "constraint", "base"], {"full": 0.5, "base": 0.25})
    (0.5, 0.125, 0.125, 0.25)
    >>> input_weights(["full", "base"], {"full": 0.5, "constraint": 0.375})
    (0.8, 0.2)
    """
    rest = max(1 - math.fsum(shares.values()), 0.0)
    numbers = Counter(role if role in shares else None for role in roles)
    parts = [shares[role] / numbers[role] if role in shares else rest / numbers[None] for role in roles]
    total = math.fsum(parts)
    return tuple(part / total for part in parts) if total else ()


def _positions(sample: SampleSpans, positions: Positions) -> list[Tensor]:
    if positions == "successive":
        return [torch.arange(len(sample.whole))]
    longest = max(len(x) for x in sample.inputs)
    starts = [longest - len(x) if positions == "aligned" else 0 for x in sample.inputs]
    parts = [torch.arange(start, start + len(x)) for start, x in zip(starts, sample.inputs, strict=True)]
    return [*parts, torch.arange(longest, longest + len(sample.output))]
