"""A whole preview: the rows shown, the statistics, the account; and its JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from misotune.preview.rows import RowView, SampleView
from misotune.preview.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Preview:
    """What `misotune preview` shows.

    Attributes:
        dataset: The dataset's path.
        model: Whose tokenizer and template.
        settings: How training reads rows, by name: mode, weighting, positions, recipe and so on.
        rows: The rows shown.
        statistics: Of the measured rows.
        account: The manifest's account as lines (depth, what, value); empty: there is none.
    """

    dataset: str
    model: str
    settings: Mapping[str, str]
    rows: Sequence[RowView]
    statistics: Statistics
    account: Sequence[tuple[int, str, int | float | str]] = ()

    @property
    def description(self) -> str:
        """How many rows, and how they are read, in a line."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{_count(self.statistics.num_rows, 'row')}; {settings}; tokens of {self.model}"

    @property
    def measured(self) -> str:
        """What the statistics are of, in a line."""
        found = self.statistics
        rows = f"{found.num_measured:,} of {_count(found.num_rows, 'row')}, drawn by seed"
        of = rows if found.is_drawn else f"all {_count(found.num_rows, 'row')}"
        cut = f", {found.num_cut:,} of them cut" if found.num_cut else ""
        return (
            f"statistics of {of}: {_count(found.num_samples, 'sample')}{cut}, "
            f"{found.trained_share:.1%} of all tokens trained"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the preview as `--json` prints it."""
        return {
            "dataset": self.dataset,
            "model": self.model,
            **self.settings,
            "shown": [_row_dict(row) for row in self.rows],
            "statistics": self.statistics.to_dict(),
            "account": [{"depth": depth, "what": what, "value": value} for depth, what, value in self.account],
        }


def _row_dict(row: RowView) -> dict[str, Any]:
    return {
        "label": row.label,
        "ids": [member.id for member in row.rows],
        "source": row.rows[0].source,
        "domain": row.rows[0].domain,
        "confidence": row.rows[0].confidence,
        "rule": row.rows[0].rule,
        "problem": row.problem,
        "samples": [_sample_dict(sample) for sample in row.samples],
    }


def _sample_dict(sample: SampleView) -> dict[str, Any]:
    return {
        "id": sample.id,
        "note": sample.note,
        "num_tokens": sample.num_tokens,
        "num_trained_tokens": sample.num_trained,
        "segments": [
            {
                "name": segment.name,
                "role": segment.role,
                "constraint": segment.constraint,
                "weight": segment.weight,
                "input_ids": [token.id for token in segment.tokens],
                "texts": [token.text for token in segment.tokens],
                "position_ids": [token.position for token in segment.tokens],
                "is_trained": [token.is_trained for token in segment.tokens],
            }
            for segment in sample.segments
        ],
        "attention": [block._asdict() for block in sample.attention()],
    }


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
