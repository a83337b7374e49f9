"""The account: what became of every row that was read, and the shares above which the command fails."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from misotune.data.records import Record
from misotune.data.sources.crab import REVERSE
from misotune.data.sources.thinking import ONE_INPUT as THINKING
from misotune.errors import DataError
from misotune.samples import Sample

DroppedKind = Literal["bad", "skipped", "duplicates", "overlap", "changed"]
ThresholdKind = Literal["bad", "duplicates", "overlap", "fallback"]
THRESHOLD_KINDS: tuple[ThresholdKind, ...] = get_args(ThresholdKind)
DEFAULT_THRESHOLDS: Mapping[ThresholdKind, float] = {"bad": 0.05}

NO_CONSTRAINTS = "no constraints"
# Rows that have no constraints to find; every other row with one input fell back to it.
_ONE_INPUT_BY_NATURE = frozenset({NO_CONSTRAINTS, "chat", REVERSE, *THINKING.values()})
_NUM_FIRST = 3
_WHAT = {
    "bad": "are bad",
    "duplicates": "repeat an earlier row",
    "overlap": "overlap an evaluation prompt",
    "fallback": "fell back to one input",
}


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row that is not in the dataset as it was read.

    Attributes:
        where: File and line.
        reason: Why.
        kind: `bad` could not be used, `skipped` was left out by rule, `duplicates` repeats an earlier row,
            `overlap` shares text with an evaluation prompt; `changed` is in the dataset, but not the whole of it.
        id: The row's id; empty where it has none.
    """

    where: str
    reason: str
    kind: DroppedKind = "bad"
    id: str = ""

    def to_dict(self) -> dict[str, str]:
        """Returns the row as a line of dropped.jsonl holds it."""
        return {"where": self.where, "id": self.id, "kind": self.kind, "reason": self.reason}


@dataclass(slots=True)
class Account:
    """Counts of rows by what became of them; each row read is kept, skipped, a duplicate, an overlap, or bad.

    Attributes:
        read: Rows read.
        kept: Rows that became samples.
        one_input: Kept rows without constraints, by reason.
        skipped: Rows left out by rule, by reason.
        duplicates: Rows that repeat an earlier row, by reason.
        overlap: Rows that share text with an evaluation prompt, by reason.
        bad: Rows that could not be used, by reason.
        changed: What was changed in kept rows, by note.
        rules: Kept rows with constraints, by the rule that found them.
        num_inputs: Rows written, by their number of inputs.
        first: The first few rows of each kind, as `where: reason`.
    """

    read: int = 0
    kept: int = 0
    one_input: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    overlap: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    num_inputs: Counter[int] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, row: DroppedRow, counted_as: str | None = None) -> None:
        """Counts a row that is left out.

        Args:
            row: The row.
            counted_as: The reason without what differs from row to row; None: the row's own.
        """
        counts: Counter[str] = getattr(self, row.kind)
        counts[counted_as or row.reason] += 1
        self._show_first(row.kind, f"{row.where}: {row.reason}")

    def keep(self, record: Record, samples: list[Sample]) -> None:
        """Counts a row that is kept."""
        self.kept += 1
        self.changed.update(record.notes)
        if record.constraints:
            self.rules[record.rule] += 1
        else:
            reason = record.one_input or NO_CONSTRAINTS
            self.one_input[reason] += 1
            if reason not in _ONE_INPUT_BY_NATURE:
                self._show_first("fallback", f"{record.id}: {reason}")
        self.num_inputs.update(len(sample.inputs) for sample in samples)

    def check(self, name: object, thresholds: Mapping[ThresholdKind, float]) -> None:
        """Fails when a larger share of the rows than allowed is of some kind, or none was kept.

        Args:
            name: What was read, for the error.
            thresholds: Shares from 0 to 1; `fallback` is of the rows kept, the others of the rows read.

        Raises:
            DataError: A share is above its threshold, or no row was kept.
        """
        for kind, most in thresholds.items():
            rows, out_of = self._counts(kind)
            if out_of and rows / out_of > most:
                of = f"{rows:,} of {out_of:,} rows {'kept ' if kind == 'fallback' else ''}{_WHAT[kind]}"
                raise DataError(
                    f"{name}: {of}, more than the share {most:g} that --fail-above {kind}={most:g} allows"
                    f"{self._first_of(kind)}"
                )
        if not self.kept:
            what = next((kind for kind in ("bad", "overlap", "duplicates", "skipped") if getattr(self, kind)), "bad")
            raise DataError(f"{name}: no row was kept of {self.read:,} read{self._first_of(what)}")

    @property
    def num_bad(self) -> int:
        """Rows that could not be used."""
        return self.bad.total()

    @property
    def num_fallback(self) -> int:
        """Kept rows in which constraints were looked for and not found, or not surely enough."""
        return sum(rows for reason, rows in self.one_input.items() if reason not in _ONE_INPUT_BY_NATURE)

    def to_dict(self) -> dict[str, Any]:
        """Returns the account as the manifest holds it; `dropped` is every row left out, by reason."""
        left_out = {kind: getattr(self, kind) for kind in ("skipped", "duplicates", "overlap", "bad")}
        return {
            "read": self.read,
            "kept": self.kept,
            "one_input": dict(self.one_input.most_common()),
            "num_fallback": self.num_fallback,
            "dropped": dict(sum(left_out.values(), Counter()).most_common()),
            **{kind: dict(counts.most_common()) for kind, counts in left_out.items()},
            "num_bad": self.num_bad,
            "changed": dict(self.changed.most_common()),
            "rules": dict(self.rules.most_common()),
            "num_inputs": {str(n): rows for n, rows in sorted(self.num_inputs.items())},
        }

    def _counts(self, kind: ThresholdKind) -> tuple[int, int]:
        if kind == "fallback":
            return self.num_fallback, self.kept
        counts: Counter[str] = getattr(self, kind)
        return counts.total(), self.read

    def _show_first(self, kind: str, line: str) -> None:
        shown = self.first.setdefault(kind, [])
        if len(shown) < _NUM_FIRST:
            shown.append(line)

    def _first_of(self, kind: str) -> str:
        shown = self.first.get(kind)
        return f"; the first: {'; '.join(shown)}" if shown else ""
