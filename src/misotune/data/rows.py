"""A row of a data file, or why there is none; what the readers of all forms share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# No model's context holds a tenth of this: such a row is a fault of the file, and would cost memory without end.
MAX_ROW_BYTES = 16 * 2**20
TOO_LONG = f"the row is longer than {MAX_ROW_BYTES >> 20} MiB"


@dataclass(frozen=True, slots=True)
class Row:
    """A row and where it stands: `file:line` (Parquet: `file: row N`)."""

    where: str
    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that cannot be read, with the reason."""

    where: str
    number: int
    reason: str
