"""What the sources share: the context of a row, and reading its fields with a reason when they are wrong."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from misotune.data.records import BadRowError, Template, brief

Join = Literal["lines", "bullets", "paragraph", "mixed"]
JOINS: tuple[Join, ...] = get_args(Join)

ID_COLUMNS = ("id", "conversation_id", "uuid", "task_id", "question_id", "key")

_TEMPLATES = {
    "lines": Template("{instruction}\n\n{constraints}"),
    "bullets": Template("{instruction}\n\n{constraints}", "- {item}"),
    "paragraph": Template("{instruction} {constraints}", separator=" "),
}
_BULLET = re.compile(r"^\s*(?:[-*#>•]|\d+[.)])\s+")


@dataclass(frozen=True, slots=True)
class RowContext:
    """What a source knows besides the row.

    Attributes:
        source: The source's name, for the sample.
        fallback_id: The id of a row that has none of its own.
        template_for: The template of a row, by its id, where the data do not bring their own.
    """

    source: str
    fallback_id: str
    template_for: Callable[[str], Template]


def template_chooser(join: Join, seed: int) -> Callable[[str], Template]:
    """Returns the template of a row id: the same for all, or for `mixed` drawn by seed and id alone."""
    return partial(_template_of, join, seed)


def _template_of(join: Join, seed: int, row_id: str) -> Template:
    if join != "mixed":
        return _TEMPLATES[join]
    names = sorted(_TEMPLATES)
    digest = hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
    return _TEMPLATES[names[digest[0] % len(names)]]


def row_id(row: Mapping[str, Any], context: RowContext) -> str:
    """Returns the row's own id, else the fallback."""
    for key in ID_COLUMNS:
        if isinstance(row.get(key), str | int) and str(row[key]).strip():
            return str(row[key])
    return context.fallback_id


def row_domain(row: Mapping[str, Any], default: str) -> str:
    """Returns the row's own `domain`, else the default."""
    domain = row.get("domain")
    return domain if isinstance(domain, str) and domain else default


def names_of(row: Mapping[str, Any]) -> str:
    """Returns the row's columns as an error lists them."""
    names = list(map(str, row))
    shown = ", ".join(names[:20]) or "no columns"
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


def text_field(row: Mapping[str, Any], *names: str) -> str:
    """Returns the first of the named columns that the row has, as text that is not empty.

    Raises:
        BadRowError: None of them is there, or the one that is there is not text, or empty.
    """
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        wanted = " or ".join(map(repr, names))
        raise BadRowError(f"no column {wanted} (the row has {names_of(row)})")
    return checked_text(name, row[name])


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """Returns a column with text, or an empty one when the row does not have it.

    Raises:
        BadRowError: It is something else.
    """
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRowError(f"{name!r} must be text, it is {brief(value)}")
    return value or ""


def checked_text(name: str, value: Any) -> str:
    """Returns the value of a column that must be text and not empty.

    Raises:
        BadRowError: It is not.
    """
    if not isinstance(value, str):
        raise BadRowError(f"{name!r} must be text, it is {brief(value)}")
    if not value.strip():
        raise BadRowError(f"{name!r} is empty")
    return value


def text_list_field(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    r"""Returns a column with a list of texts; empty when the row does not have it.

    Three forms are read: a list of texts; texts by their kind, or lists of them (`{"Tone": "Be formal."}`, as
    Crab and Conifer keep constraints), whose empty entries Parquet makes and are left out; and, for CSV, one
    text that holds a JSON list or one entry a line.

    >>> text_list_field({"constraints": "- Be brief.\n- No commas."}, "constraints")
    ('Be brief.', 'No commas.')

    Raises:
        BadRowError: It is something else, or holds something that is not text or is empty.
    """
    values = row.get(name)
    if values is None:
        return ()
    if isinstance(values, str):
        values = _listed(values)
    if isinstance(values, Mapping):
        by_kind = (_of_kind(kind, value) for kind, value in values.items())
        values = [value for value in by_kind if value is not None]
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise BadRowError(f"{name!r} must be a list of texts, it is {brief(values)}")
    for i, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise BadRowError(f"{name}[{i}] must be text that is not empty, it is {brief(value)}")
    return tuple(values)


def _listed(text: str) -> Any:
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # else it is a text that opens with a bracket
            return json.loads(text)
    return [_BULLET.sub("", line).strip() for line in text.splitlines() if line.strip()]


def _of_kind(kind: Any, value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{kind}: {', '.join(map(str, value))}" if value else None
    return value
