"""Statistics of a dataset as training will see it: inputs, lengths in tokens, shares of trained tokens."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from misotune.errors import DataError
from misotune.layout import EncodedSample
from misotune.preview.reading import Reading
from misotune.samples import Sample

LENGTHS = {
    "pair": "longest input and output",
    "whole": "all inputs and output",
    "inputs": "all inputs",
    "output": "output",
    "trained": "trained tokens",
}
"""What is measured of a sample, in tokens; `pair` is what `data.max_length` limits."""

_NUM_BINS = 20
_NUM_EXAMPLES = 3


class Summary(NamedTuple):
    """The middle, nine tenths, and the largest."""

    median: float
    p90: float
    max: float


class Bin(NamedTuple):
    """A bar of a histogram: values from `low` to below `high`, the last bar with `high`."""

    low: float
    high: float
    number: int


@dataclass(slots=True)
class Statistics:
    """What the measured rows hold.

    Attributes:
        num_rows: Rows of the dataset.
        num_measured: Rows that were measured.
        num_cut: Samples whose output training cuts to the limit.
        inputs: Samples by their number of inputs.
        roles: Inputs by role.
        domains: Rows by domain.
        values: For each of `LENGTHS`, the tokens of every sample that training keeps.
        left_out: Samples that training leaves out, by reason.
        examples: For each reason, the ids of the first ones.
    """

    num_rows: int
    num_measured: int = 0
    num_cut: int = 0
    inputs: Counter[int] = field(default_factory=Counter[int])
    roles: Counter[str] = field(default_factory=Counter[str])
    domains: Counter[str] = field(default_factory=Counter[str])
    values: dict[str, "array[int]"] = field(default_factory=lambda: {name: array("q") for name in LENGTHS})
    left_out: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    @property
    def num_samples(self) -> int:
        """Samples that training keeps, of the measured rows."""
        return len(self.values["whole"])

    @property
    def is_drawn(self) -> bool:
        """True when only a part of the rows was measured."""
        return self.num_measured < self.num_rows

    @property
    def trained_share(self) -> float:
        """Trained tokens as a share of all tokens."""
        whole = sum(self.values["whole"])
        return sum(self.values["trained"]) / whole if whole else 0.0

    @property
    def trained_shares(self) -> list[float]:
        """The same of every sample."""
        return [a / b for a, b in zip(self.values["trained"], self.values["whole"], strict=True)]

    def lengths(self) -> dict[str, Summary]:
        """Returns the summary of each of `LENGTHS`; empty when no sample is left."""
        return {name: summarize(values) for name, values in self.values.items() if values}

    def to_dict(self) -> dict[str, Any]:
        """Returns the statistics as `--json` prints them."""
        return {
            "rows": self.num_rows,
            "rows_measured": self.num_measured,
            "samples": self.num_samples,
            "samples_cut": self.num_cut,
            "inputs_per_sample": {str(n): count for n, count in sorted(self.inputs.items())},
            "roles": dict(self.roles.most_common()),
            "domains": dict(self.domains.most_common()),
            "tokens": {name: summary._asdict() for name, summary in self.lengths().items()},
            "trained_share": round(self.trained_share, 6),
            "left_out": [
                {"reason": reason, "samples": count, "first": self.examples[reason]}
                for reason, count in self.left_out.most_common()
            ],
        }


def measure(chosen: Iterable[tuple[int, Sequence[Sample]]], num_rows: int, reading: Reading) -> Statistics:
    """Returns the statistics of rows.

    Args:
        chosen: Each row with its number, rows of one chunk together.
        num_rows: Rows of the whole dataset.
        reading: How training reads rows.
    """
    found = Statistics(num_rows)
    for _, rows in chosen:
        found.num_measured += len(rows)
        found.domains.update(row.domain or "(none)" for row in rows)
        try:
            encoded = reading.encode(rows)
        except DataError as error:  # training stops at such a row
            _leave_out(found, str(error), len(rows), rows[0].id)
            continue
        found.num_cut += encoded.num_cut
        for reason, (number, first) in encoded.left_out.items():
            _leave_out(found, reason, number, first)
        for sample in encoded.samples:
            _add(found, reading.cut(sample))
    return found


def _add(found: Statistics, sample: EncodedSample) -> None:
    found.inputs[len(sample.inputs)] += 1
    found.roles.update(sample.roles)
    measured = {
        "pair": sample.longest_pair,
        "whole": sample.num_tokens,
        "inputs": sample.num_input_tokens,
        "output": len(sample.output),
        "trained": sample.num_trained_tokens,
    }
    for name, value in measured.items():
        found.values[name].append(value)


def _leave_out(found: Statistics, reason: str, number: int, first: str) -> None:
    # The reason may name the row; rows with the same trouble are counted together.
    reason = reason.removeprefix(f"row {first}: ")
    found.left_out[reason] += number
    examples = found.examples.setdefault(reason, [])
    if len(examples) < _NUM_EXAMPLES:
        examples.append(first)


def summarize(values: Sequence[float]) -> Summary:
    """Returns median, 90 % quantile and maximum.

    >>> summarize([1, 2, 3, 4, 10])
    Summary(median=3.0, p90=7.6, max=10.0)
    """
    median, p90, largest = (round(float(x), 6) for x in np.quantile(np.asarray(values), [0.5, 0.9, 1.0]))
    return Summary(median, p90, largest)


def histogram(values: Sequence[float], *, is_share: bool = False) -> list[Bin]:
    """Returns bars of equal width over the values.

    Args:
        values: At least one; whole numbers, unless `is_share`.
        is_share: The values are shares, and the bars go from 0 to 1.

    >>> histogram([3, 4, 4, 6])
    [Bin(low=3.0, high=4.0, number=1), Bin(low=4.0, high=5.0, number=2), Bin(low=5.0, high=6.0, number=1)]
    """
    data = np.asarray(values, dtype=float)
    first, last = (0.0, 1.0) if is_share else (float(data.min()), float(data.max()))
    last = max(last, first + 1)
    bins = _NUM_BINS if is_share else min(_NUM_BINS, int(last - first))
    numbers, edges = np.histogram(data, bins=bins, range=(first, last))
    borders = [round(float(edge), 9) for edge in edges]
    return [Bin(borders[i], borders[i + 1], int(number)) for i, number in enumerate(numbers)]


def account_lines(account: Mapping[str, Any], depth: int = 0) -> list[tuple[int, str, int | float | str]]:
    """Returns a manifest's account as lines (depth, what, value), whatever it counts; empty groups are left out.

    >>> account_lines({"read": 3, "dropped": {"no output": 1}, "rules": {}})
    [(0, 'read', 3), (0, 'dropped', 1), (1, 'no output', 1)]
    """
    lines: list[tuple[int, str, int | float | str]] = []
    for key, value in account.items():
        what = key.replace("_", " ") if depth == 0 else key
        if isinstance(value, Mapping):
            if value:
                are_counts = all(isinstance(each, int) for each in value.values())
                lines.append((depth, what, sum(value.values()) if are_counts else ""))
                lines += account_lines(value, depth + 1)
        elif isinstance(value, (int, float, str)):
            lines.append((depth, what, value))
    return lines
