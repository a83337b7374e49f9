"""`--map instruction=prompt,output=completion`: columns under other names."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from misotune.data.records import BadRowError, Record
from misotune.data.sources.fields import RowContext, names_of
from misotune.errors import UsageError

# What sources look for in a row; each can be mapped to a column of another name.
MAPPABLE = (
    "instruction",
    "input",
    "constraints",
    "output",
    "reasoning",
    "options",
    "messages",
    "system",
    "history",
    "id",
    "domain",
)
_CHAT = ("messages", "conversations", "conversation")
_PAIR = ("instruction", "output")

ToRecord = Callable[[Mapping[str, Any], RowContext], Record]


def check_columns(columns: Mapping[str, str]) -> None:
    """Checks the left sides of a mapping.

    Raises:
        UsageError: One is not among `MAPPABLE`, or a right side is empty.
    """
    for wanted, name in columns.items():
        if wanted not in MAPPABLE:
            near = difflib.get_close_matches(wanted, MAPPABLE, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"--map {wanted}={name}: {hint}left of = stands one of {', '.join(MAPPABLE)}")
        if not name.strip():
            raise UsageError(f"--map {wanted}=: name a column of the data after =")


def mapped_record(
    row: Mapping[str, Any], context: RowContext, *, to_record: ToRecord, columns: tuple[tuple[str, str], ...]
) -> Record:
    """Returns the record of a row whose columns have other names.

    Args:
        row: The row as it was read.
        context: What the source knows besides.
        to_record: The source's own function.
        columns: Pairs of the name that the source looks for and the row's column. A dot goes down into a
            column (`output=answers.text.0`).

    Raises:
        BadRowError: The row does not have a column that the mapping names.
    """
    wanted = dict(columns)
    # A mapping says which form the row has: the other form's columns would only compete with it.
    others = _PAIR if "messages" in wanted else _CHAT if wanted.keys() & set(_PAIR) else ()
    renamed = {name: value for name, value in row.items() if name not in others}
    renamed.update({name: _value(row, name, column) for name, column in columns})
    return to_record(renamed, context)


def _value(row: Mapping[str, Any], name: str, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise BadRowError(f"no column {column!r} for --map {name}={column} (the row has {names_of(row)})")
    return value
