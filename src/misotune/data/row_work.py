"""What is done to a row by itself: pure and picklable, so that worker processes can do it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from misotune.data.account import DroppedRow
from misotune.data.files import BrokenRow, Row
from misotune.data.records import BadRowError, Record, SkippedRowError, brief
from misotune.data.sources.fields import Join, RowContext, template_chooser
from misotune.data.sources.registry import Source

# Counts, places and quoted values at the end of a reason.
_DETAILS = re.compile(r", it is .*| at (?:byte|column) \d+| \(.*\)$|(?<=turn) \d+|, this is .*|\[\d+\]|: \{.*")


@dataclass(frozen=True, slots=True)
class WorkedRow:
    """A row that became a record.

    Attributes:
        where: File and line.
        record: The record.
        fingerprints: What each guard compares the record by.
        measured: What the statistics take of it; None without statistics.
    """

    where: str
    record: Record
    fingerprints: tuple[bytes, ...]
    measured: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class RowWork:
    """Turns a row into a record with all that can be computed from it alone.

    Attributes:
        source: Makes the record.
        join: How constraints are joined to the instruction where the data do not say.
        seed: Draws the templates of `join: mixed`.
        change: Changes the record (decomposition by rules), in this order; may raise as a source does.
        fingerprints: Functions of the guards.
        measure: The function of the statistics.
    """

    source: Source
    join: Join
    seed: int
    change: tuple[Callable[[Record], Record], ...] = ()
    fingerprints: tuple[Callable[[Record], bytes], ...] = ()
    measure: Callable[[Record], tuple[Any, ...]] | None = None

    def __call__(self, row: Row | BrokenRow) -> WorkedRow | DroppedRow:
        """Returns the record and what goes with it, or why there is none."""
        if isinstance(row, BrokenRow):
            return DroppedRow(row.where, row.reason)
        fallback_id = f"{self.source.name}-{row.number}"
        context = RowContext(self.source.name, fallback_id, template_chooser(self.join, self.seed))
        try:
            record = self.source.to_record(row.values, context)
            _check_text(record)
            for change in self.change:
                record = change(record)
        except SkippedRowError as skipped:
            return DroppedRow(row.where, str(skipped), "skipped", _id_of(row, fallback_id))
        except BadRowError as bad:
            return DroppedRow(row.where, str(bad), "bad", _id_of(row, fallback_id))
        return WorkedRow(
            row.where,
            record,
            tuple(fingerprint(record) for fingerprint in self.fingerprints),
            self.measure(record) if self.measure is not None else None,
        )


def kind_of(reason: str) -> str:
    """Returns the reason without what differs from row to row, so that equal faults are counted together.

    >>> kind_of("broken JSON at column 17: Expecting value")
    'broken JSON: Expecting value'
    """
    return _DETAILS.sub("", reason).strip()


def _id_of(row: Row, fallback: str) -> str:
    own = row.values.get("id")
    return str(own) if isinstance(own, str | int) and str(own).isprintable() and str(own) else fallback


def _check_text(record: Record) -> None:
    """Refuses halves of surrogate pairs, which JSON can write and no file can hold."""
    history = (message["content"] for message in record.history)
    for text in (record.id, record.instruction, *record.constraints, record.output, *history):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(f"text with half a surrogate pair ({brief(text[error.start])})") from error
