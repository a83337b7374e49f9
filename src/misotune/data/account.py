"""The account: what became of every row that was read."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from misotune.data.records import Record
from misotune.samples import Sample


@dataclass(slots=True)
class BadRow:
    """A row that could not be used: file and line, and why."""

    where: str
    reason: str


@dataclass(slots=True)
class Account:
    """Counts of rows by what became of them; every row read is kept, skipped by rule, or bad.

    Attributes:
        read: Rows read.
        kept: Rows that became samples.
        one_input: Kept rows without constraints, by reason.
        skipped: Rows left out by the source's rules, by reason.
        bad: Rows that could not be used, by reason.
        changed: What was changed in kept rows, by note.
        rules: Kept rows with constraints, by the rule that found them.
        num_inputs: Rows written, by their number of inputs.
    """

    read: int = 0
    kept: int = 0
    one_input: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    num_inputs: Counter[int] = field(default_factory=Counter)

    def keep(self, record: Record, samples: list[Sample]) -> None:
        """Counts a row that was kept."""
        self.kept += 1
        self.changed.update(record.notes)
        if record.constraints:
            self.rules[record.rule] += 1
        else:
            self.one_input[record.one_input or "no constraints"] += 1
        self.num_inputs.update(len(sample.inputs) for sample in samples)

    @property
    def num_bad(self) -> int:
        """Rows that could not be used."""
        return self.bad.total()

    @property
    def bad_share(self) -> float:
        """Bad rows as a share of all rows read."""
        return self.num_bad / self.read if self.read else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the account as the manifest holds it; `dropped` is skipped and bad rows together."""
        return {
            "read": self.read,
            "kept": self.kept,
            "one_input": dict(self.one_input.most_common()),
            "dropped": dict((self.skipped + self.bad).most_common()),
            "num_bad": self.num_bad,
            "changed": dict(self.changed.most_common()),
            "rules": dict(self.rules.most_common()),
            "num_inputs": {str(n): rows for n, rows in sorted(self.num_inputs.items())},
        }
