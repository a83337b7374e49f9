"""What works on the records between a source and the dataset: steps, guards and statistics, as interfaces."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from misotune.data.account import Account
from misotune.data.records import Record


class Step(Protocol):
    """Changes the records of a stream, in order, or leaves some out, which it counts in `account.skipped`."""

    def __call__(self, records: Iterable[Record], account: Account) -> Iterator[Record]:
        """Yields the records that stay."""
        ...


class Guard(Protocol):
    """Decides whether a record stays, by a fingerprint that is taken in a worker process."""

    def fingerprint(self, record: Record) -> bytes:
        """Returns what the record is compared by: a pure function."""
        ...

    def accept(self, record: Record, fingerprint: bytes) -> str | None:
        """Returns None to keep the record, else the reason for the account; called in the order of the rows."""
        ...


class Statistics(Protocol):
    """Sums up the records of a dataset."""

    def measure(self, record: Record) -> tuple[Any, ...]:
        """Returns what is taken of a record: a pure function, for worker processes."""
        ...

    def add(self, measured: tuple[Any, ...]) -> None:
        """Adds what was taken of one record."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Returns the statistics as the manifest holds them."""
        ...
