"""The stage `prepare`: rows -> records -> guards -> steps -> samples -> a dataset folder, each row accounted for."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from misotune.data.account import DEFAULT_THRESHOLDS, Account, DroppedKind, DroppedRow, ThresholdKind
from misotune.data.dataset import DatasetWriter
from misotune.data.files import BrokenRow, Row, read_rows
from misotune.data.hub import read_hub_rows
from misotune.data.records import Record, to_samples
from misotune.data.row_work import RowWork, WorkedRow, kind_of
from misotune.data.sources.fields import Join
from misotune.data.sources.registry import SOURCES, Source
from misotune.data.steps import Guard, Statistics, Step
from misotune.data.workers import map_in_order
from misotune.samples import Mode
from misotune.storage import sha256_of

Dedupe = Literal["off", "exact", "near"]


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """What decides the rows of a dataset, given its source.

    Attributes:
        mode: The inputs that a row gets.
        seed: Draws whatever is random.
        join: How constraints are joined to the instruction; None: the source's own way.
        limit: Rows that pass the guards at most; None: all.
        fail_above: Shares of rows, 0 to 1 by kind, above which nothing is written.
        split: The split of a hub data set.
        decompose_by_rules: Split instructions that list no constraints by rules.
        dedupe: Which repeated rows are left out.
        decontaminate: Evaluation sets (names or files) whose prompts must not occur in the rows.
        workers: Processes that work on the rows; with 0 or 1 this one does.
    """

    mode: Mode = "para"
    seed: int = 0
    join: Join | None = None
    limit: int | None = None
    fail_above: Mapping[ThresholdKind, float] = field(default_factory=lambda: dict(DEFAULT_THRESHOLDS))
    split: str = "train"
    decompose_by_rules: bool = False
    dedupe: Dedupe = "off"
    decontaminate: tuple[str, ...] = ()
    workers: int = 1


@dataclass(slots=True)
class Prepared:
    """What `prepare_dataset` did.

    Attributes:
        out: The dataset's folder.
        num_rows: Rows written; for flat more than rows kept.
        account: What became of every row read.
        statistics: Languages and lengths of the texts.
    """

    out: Path
    num_rows: int
    account: Account
    statistics: dict[str, Any]


def prepare_dataset(
    source: Source,
    out: Path,
    settings: PrepareSettings,
    steps: Sequence[Step] = (),
    on_row: Callable[[Account], None] = lambda _: None,
    on_dropped: Callable[[DroppedRow], None] = lambda _: None,
    described: Mapping[str, Any] | None = None,
) -> Prepared:
    """Writes the dataset folder `out` from a source, row by row, and returns the account.

    Args:
        source: Where the rows come from.
        out: The folder; it appears whole at the end, or not at all.
        settings: What decides the rows.
        steps: What is done to the records that passed the guards, in this order.
        on_row: Called after each row read, for progress.
        on_dropped: Called for each row left out or changed.
        described: What the manifest's settings say of the steps.

    Raises:
        UsageError: The file is missing, or `out` holds something else.
        DataError: The file cannot be read, no row was kept, or a share of rows is above its threshold.
        RunError: A worker process was killed.
    """
    with DatasetWriter(out) as writer:

        def drop(row: DroppedRow) -> None:
            writer.add_dropped(row)
            on_dropped(row)

        account, statistics = Account(), text_statistics()
        guards = guards_of(settings)
        # Steps change the texts, so that the statistics are taken behind them.
        early = None if steps else statistics
        records = read_records(
            source, settings, account, guards=guards, statistics=early, on_row=on_row, on_dropped=drop
        )
        for step in steps:
            records = step(records, account)
        for record in records:
            if early is None:
                statistics.add(statistics.measure(record))
            samples = to_samples(record, settings.mode)
            account.keep(record, samples)
            if record.checks:
                writer.add_checks(record.id, record.checks)
            for sample in samples:
                writer.add(sample)
        account.check(source.path or source.hub_id, settings.fail_above)
        summary = statistics.to_dict()
        writer.finish(_manifest(source, settings, account, summary, described or {}))
    return Prepared(out, writer.num_rows, account, summary)


def read_records(
    source: Source,
    settings: PrepareSettings,
    account: Account,
    *,
    guards: Mapping[DroppedKind, Guard] | None = None,
    statistics: Statistics | None = None,
    on_row: Callable[[Account], None] = lambda _: None,
    on_dropped: Callable[[DroppedRow], None] = lambda _: None,
) -> Iterator[Record]:
    """Yields the records of a source that pass the guards, each with an id of its own.

    Rows are worked on in `settings.workers` processes; what is yielded and counted does not depend on how many.

    Args:
        source: Where the rows come from.
        settings: Of these `seed`, `join`, `limit`, `split`, `decompose_by_rules` and `workers` are used.
        account: Counts the rows read, and those left out.
        guards: By the kind that the account counts their rows under; see `guards_of`.
        statistics: Gets the records yielded.
        on_row: Called after each row read, for progress.
        on_dropped: Called for each row left out or changed.

    Raises:
        UsageError: The file is missing.
        DataError: The file cannot be read.
        RunError: The hub cannot be reached, or a worker process was killed.
    """
    guards = guards or {}
    work = RowWork(
        source,
        settings.join or source.join,
        settings.seed,
        (_by_rules(),) if settings.decompose_by_rules else (),
        tuple(guard.fingerprint for guard in guards.values()),
        statistics.measure if statistics is not None else None,
    )
    times_seen: Counter[str] = Counter()
    num_passed = 0
    for row in map_in_order(work, _rows_of(source, settings.split), settings.workers):
        account.read += 1
        dropped = row if isinstance(row, DroppedRow) else _refused(row, guards)
        if dropped is not None:
            account.drop(dropped, kind_of(dropped.reason) if dropped.kind == "bad" else None)
            on_dropped(dropped)
        elif isinstance(row, WorkedRow):
            record = _with_own_id(row.record, times_seen)
            for note in record.notes:
                on_dropped(DroppedRow(row.where, note, "changed", record.id))
            if statistics is not None and row.measured is not None:
                statistics.add(row.measured)
            yield record
            num_passed += 1
        on_row(account)
        if num_passed == settings.limit:
            return


def guards_of(settings: PrepareSettings) -> dict[DroppedKind, Guard]:
    """Returns the guards that the settings ask for.

    Raises:
        UsageError: An evaluation set is unknown, or its file is missing.
    """
    guards: dict[DroppedKind, Guard] = {}
    if settings.decontaminate:
        from misotune.data.guards.overlap import Decontamination

        guards["overlap"] = Decontamination(settings.decontaminate)
    if settings.dedupe != "off":
        from misotune.data.guards.duplicates import Deduplication

        guards["duplicates"] = Deduplication(settings.dedupe)
    return guards


def text_statistics() -> Statistics:
    """Returns the statistics of texts: languages and lengths."""
    from misotune.data.guards.statistics import TextStatistics

    return TextStatistics()


def _by_rules() -> Callable[[Record], Record]:
    from misotune.data.decompose.rules import decompose_by_rules

    return decompose_by_rules


def _refused(row: WorkedRow, guards: Mapping[DroppedKind, Guard]) -> DroppedRow | None:
    for (kind, guard), fingerprint in zip(guards.items(), row.fingerprints, strict=True):
        reason = guard.accept(row.record, fingerprint)
        if reason is not None:
            return DroppedRow(row.where, reason, kind, row.record.id)
    return None


def _with_own_id(record: Record, times_seen: Counter[str]) -> Record:
    times_seen[record.id] += 1
    times = times_seen[record.id]
    return record if times == 1 else replace(record, id=f"{record.id}~{times}")


def _rows_of(source: Source, split: str) -> Iterator[Row | BrokenRow]:
    if source.path is not None:
        return read_rows(source.path)
    assert source.hub_id is not None, "find_source gives every source a file or a hub id"
    command = f"misotune prepare {source.name} --data FILE" if source.name in SOURCES else "misotune prepare FILE"
    return read_hub_rows(source.hub_id, split, command, source.revision)


def _manifest(
    source: Source,
    settings: PrepareSettings,
    account: Account,
    statistics: dict[str, Any],
    described: Mapping[str, Any],
) -> dict[str, Any]:
    where: dict[str, Any] = {"name": source.name}
    if source.path is not None:
        where |= {"path": str(source.path), "sha256": sha256_of(source.path)}
    else:
        where |= {"hub_id": source.hub_id, "split": settings.split, "revision": source.revision}
    return {
        "source": where,
        "mode": settings.mode,
        "seed": settings.seed,
        "settings": {
            "join": settings.join or source.join,
            "limit": settings.limit,
            "fail_above": dict(settings.fail_above),
            "dedupe": settings.dedupe,
            "decontaminate": list(settings.decontaminate),
            **({"decompose": "rules"} if settings.decompose_by_rules else {}),
            **described,
        },
        "account": account.to_dict(),
        "statistics": statistics,
    }
