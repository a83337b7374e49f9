"""Reads the sources of a mixture into the store."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from misotune.data.account import Account, DroppedKind, DroppedRow
from misotune.data.mixture.sampling import row_key
from misotune.data.mixture.shares import SourceShare
from misotune.data.mixture.spec import Mixture, MixtureSource
from misotune.data.mixture.store import RowStore, StoredRow
from misotune.data.prepare import Guard, PrepareSettings, Statistics, Step, read_records
from misotune.data.records import Record
from misotune.recipe.mixture import SourceEntry


@dataclass(slots=True)
class ReadSource:
    """A source that was read.

    Attributes:
        account: What became of its rows.
        share: What it has; what is drawn of it is added.
        numbers: The rows that may be drawn, as numbers in the store.
        keys: What places each of these in the order.
    """

    account: Account
    share: SourceShare
    numbers: Sequence[int]
    keys: Sequence[int]


def read_source(
    source: MixtureSource,
    mixture: Mixture,
    settings: PrepareSettings,
    guards: Mapping[DroppedKind, Guard],
    statistics: Statistics,
    store: RowStore,
    on_row: Callable[[str, Account], None],
    on_dropped: Callable[[DroppedRow], None],
) -> ReadSource:
    """Reads a source into the store, and returns what the draw needs to know of it.

    Args:
        source: The source.
        mixture: What it is a part of.
        settings: As for `prepare_mixture`.
        guards: Of the whole mixture.
        statistics: Measures the rows.
        store: Where the rows wait.
        on_row: Called after each row read.
        on_dropped: Called for each row left out or changed.

    Raises:
        DataError: The file cannot be read, it gives no row, or a share of its rows is above its threshold.
        RunError: The hub cannot be reached, or a worker process was killed.
    """
    file, entry = mixture.file, source.entry
    of_source = replace(
        settings,
        mode=file.mode,
        seed=file.seed,
        join=entry.join,
        limit=None,
        split=entry.split,
        decompose_by_rules=entry.constraints == "rules",
    )
    account, measured = Account(), _Measured(statistics)
    steps = _steps(entry, of_source)
    records = read_records(
        source.source,
        of_source,
        account,
        guards=guards,
        # Steps change the texts, which are then measured behind them.
        statistics=None if steps else measured,
        on_row=lambda counted: on_row(source.name, counted),
        on_dropped=on_dropped,
    )
    for step in steps:
        records = step(records, account)
    share = SourceShare(source.name, entry.domain)
    numbers, keys = array("L"), array("Q")
    for record in records:
        record = replace(record, id=f"{source.name}/{record.id}", domain=entry.domain)
        numbers.append(store.add(StoredRow(record, statistics.measure(record) if steps else measured.last)))
        keys.append(row_key(file.seed, record.id))
        account.keep(record, [])
        share.before.add(response_characters(record))
    account.check(source.name, settings.fail_above)
    if entry.cap is not None and entry.cap < len(numbers):
        chosen = sorted(range(len(keys)), key=keys.__getitem__)[: entry.cap]
        numbers, keys = array("L", (numbers[i] for i in chosen)), array("Q", (keys[i] for i in chosen))
    return ReadSource(account, share, numbers, keys)


class _Measured:
    """Keeps what a worker process took of the last record, until it is known how often the record is drawn."""

    def __init__(self, statistics: Statistics) -> None:
        self.measure = statistics.measure
        self.last: tuple[Any, ...] = ()

    def add(self, measured: tuple[Any, ...]) -> None:
        """Called just before the record is yielded."""
        self.last = measured

    def to_dict(self) -> dict[str, Any]:
        """Nothing is summed up yet."""
        return {}


def _steps(entry: SourceEntry, settings: PrepareSettings) -> Sequence[Step]:
    if entry.constraints != "backtranslate":
        return ()
    from misotune.data.backtranslate.build import Backtranslation

    return (Backtranslation(settings.seed, join=settings.join, workers=settings.workers),)


def response_characters(record: Record) -> int:
    """Returns the characters of all that is trained on in a row."""
    earlier = (m["content"] for m in record.history if record.history_loss and m["role"] == "assistant")
    return len(record.output) + sum(map(len, earlier))
