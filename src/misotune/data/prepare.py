"""The stage `prepare`: rows -> records -> samples -> a dataset folder, with an account of every row."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from misotune.data.account import Account, BadRow
from misotune.data.dataset import DatasetWriter
from misotune.data.files import BrokenRow, Row, read_rows
from misotune.data.hub import read_hub_rows
from misotune.data.records import BadRowError, Record, SkippedRowError, brief, to_samples
from misotune.data.sources.fields import Join, RowContext, template_chooser
from misotune.data.sources.registry import SOURCES, Source
from misotune.errors import DataError
from misotune.samples import Mode
from misotune.storage import sha256_of

NUM_BAD_SHOWN = 5
# Counts, places and quoted values at the end of a reason.
_DETAILS = re.compile(r", it is .*| at (?:byte|column) \d+| \(.*\)$|(?<=turn) \d+|, this is .*|\[\d+\]|: \{.*")


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """What decides the rows of a dataset, given its source.

    Attributes:
        mode: The inputs that a row gets.
        seed: Draws the templates of `join: mixed`.
        join: How constraints are joined to the instruction; None: the source's own way.
        limit: Rows to keep at most; None: all.
        max_dropped: Share of bad rows, 0 to 1, above which nothing is written.
        split: The split of a hub data set.
    """

    mode: Mode = "para"
    seed: int = 0
    join: Join | None = None
    limit: int | None = None
    max_dropped: float = 0.05
    split: str = "train"


@dataclass(slots=True)
class Prepared:
    """What `prepare_dataset` did.

    Attributes:
        out: The dataset's folder.
        num_rows: Rows written; for flat more than rows kept.
        account: What became of every row read.
        first_bad: The first few bad rows.
    """

    out: Path
    num_rows: int
    account: Account
    first_bad: list[BadRow] = field(default_factory=list)


def prepare_dataset(
    source: Source,
    out: Path,
    settings: PrepareSettings,
    on_row: Callable[[Account], None] = lambda _: None,
    on_bad: Callable[[BadRow], None] = lambda _: None,
) -> Prepared:
    """Writes the dataset folder `out` from a source, row by row, and returns the account.

    Args:
        source: Where the rows come from.
        out: The folder; it appears whole at the end, or not at all.
        settings: What decides the rows.
        on_row: Called after each row, for progress.
        on_bad: Called for each bad row.

    Raises:
        UsageError: The file is missing, or `out` holds something else.
        DataError: The file cannot be read, no row was kept, or too many rows are bad.
    """
    result = Prepared(out, 0, Account())
    with DatasetWriter(out) as writer:
        intake = _Intake(source, settings, writer, result, on_bad)
        for row in _rows_of(source, settings.split):
            if settings.limit is not None and result.account.kept >= settings.limit:
                break
            intake.take(row)
            on_row(result.account)
        result.num_rows = writer.num_rows
        _check_account(source, result, settings.max_dropped)
        writer.finish(_manifest(source, settings, result.account))
    return result


class _Intake:
    """Takes rows one by one: into the dataset, or into the account with a reason."""

    def __init__(
        self,
        source: Source,
        settings: PrepareSettings,
        writer: DatasetWriter,
        result: Prepared,
        on_bad: Callable[[BadRow], None],
    ) -> None:
        self._source = source
        self._mode: Mode = settings.mode
        self._template_for = template_chooser(settings.join or source.join, settings.seed)
        self._writer = writer
        self._result = result
        self._on_bad = on_bad
        self._times_seen: Counter[str] = Counter()

    def take(self, row: Row | BrokenRow) -> None:
        """Keeps, skips or refuses one row."""
        account = self._result.account
        account.read += 1
        try:
            record = self._record_of(row)
        except SkippedRowError as skipped:
            account.skipped[str(skipped)] += 1
        except BadRowError as bad:
            self._refuse(BadRow(row.where, str(bad)))
        else:
            samples = to_samples(record, self._mode)
            account.keep(record, samples)
            for sample in samples:
                self._writer.add(sample)

    def _record_of(self, row: Row | BrokenRow) -> Record:
        if isinstance(row, BrokenRow):
            raise BadRowError(row.reason)
        context = RowContext(self._source.name, f"{self._source.name}-{row.number}", self._template_for)
        record = self._source.to_record(row.values, context)
        _check_text(record)
        self._times_seen[record.id] += 1
        times = self._times_seen[record.id]
        return record if times == 1 else replace(record, id=f"{record.id}~{times}")

    def _refuse(self, bad: BadRow) -> None:
        self._result.account.bad[_kind_of(bad.reason)] += 1
        self._writer.add_dropped(bad)
        if len(self._result.first_bad) < NUM_BAD_SHOWN:
            self._result.first_bad.append(bad)
        self._on_bad(bad)


def _check_text(record: Record) -> None:
    """Refuses halves of surrogate pairs, which JSON can write and no file can hold."""
    history = (message["content"] for message in record.history)
    for text in (record.id, record.instruction, *record.constraints, record.output, *history):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(f"text with half a surrogate pair ({brief(text[error.start])})") from error


def _kind_of(reason: str) -> str:
    """The reason without what differs from row to row, so that equal faults are counted together."""
    return _DETAILS.sub("", reason).strip()


def _rows_of(source: Source, split: str) -> Iterator[Row | BrokenRow]:
    if source.path is not None:
        return read_rows(source.path)
    assert source.hub_id is not None, "find_source gives every source a file or a hub id"
    command = f"misotune prepare {source.name} --data FILE" if source.name in SOURCES else "misotune prepare FILE"
    return read_hub_rows(source.hub_id, split, command)


def _check_account(source: Source, result: Prepared, max_dropped: float) -> None:
    account = result.account
    name = source.path or source.hub_id
    first = f"; the first: {result.first_bad[0].where}: {result.first_bad[0].reason}" if result.first_bad else ""
    if account.bad_share > max_dropped:
        raise DataError(
            f"{name}: {account.num_bad} of {account.read} rows are bad, more than the share {max_dropped:g} "
            f"that --max-dropped allows{first}"
        )
    if not account.kept:
        raise DataError(f"{name}: no row was kept of {account.read} read{first}")


def _manifest(source: Source, settings: PrepareSettings, account: Account) -> dict[str, Any]:
    where: dict[str, Any] = {"name": source.name}
    if source.path is not None:
        where |= {"path": str(source.path), "sha256": sha256_of(source.path)}
    else:
        where |= {"hub_id": source.hub_id, "split": settings.split}
    return {
        "source": where,
        "mode": settings.mode,
        "seed": settings.seed,
        "settings": {
            "join": settings.join or source.join,
            "limit": settings.limit,
            "max_dropped": settings.max_dropped,
        },
        "account": account.to_dict(),
    }
