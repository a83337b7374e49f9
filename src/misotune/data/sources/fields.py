"""What the sources share: the context of a row, and reading its fields with a reason when they are wrong."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from misotune.data.records import BadRowError, Template, brief

Join = Literal["lines", "bullets", "paragraph", "mixed"]
JOINS: tuple[Join, ...] = get_args(Join)

_TEMPLATES = {
    "lines": Template("{instruction}\n\n{constraints}"),
    "bullets": Template("{instruction}\n\n{constraints}", "- {item}"),
    "paragraph": Template("{instruction} {constraints}", separator=" "),
}


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
    if join != "mixed":
        return lambda _: _TEMPLATES[join]
    names = sorted(_TEMPLATES)

    def draw(row_id: str) -> Template:
        digest = hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
        return _TEMPLATES[names[digest[0] % len(names)]]

    return draw


def row_id(row: Mapping[str, Any], context: RowContext) -> str:
    """Returns the row's own id, else the fallback."""
    for key in ("id", "conversation_id"):
        if isinstance(row.get(key), str | int) and str(row[key]).strip():
            return str(row[key])
    return context.fallback_id


def row_domain(row: Mapping[str, Any], default: str) -> str:
    """Returns the row's own `domain`, else the default."""
    domain = row.get("domain")
    return domain if isinstance(domain, str) and domain else default


def text_field(row: Mapping[str, Any], *names: str) -> str:
    """Returns the first of the named columns that the row has, as text that is not empty.

    Raises:
        BadRowError: None of them is there, or the one that is there is not text, or empty.
    """
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        wanted = " or ".join(map(repr, names))
        raise BadRowError(f"no column {wanted} (the row has {', '.join(map(str, row)) or 'none'})")
    value = row[name]
    if not isinstance(value, str):
        raise BadRowError(f"{name!r} must be text, it is {brief(value)}")
    if not value.strip():
        raise BadRowError(f"{name!r} is empty")
    return value


def text_list_field(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Returns a column with a list of texts; empty when the row does not have it.

    Raises:
        BadRowError: It is something else, or holds something that is not text or is empty.
    """
    values = row.get(name)
    if values is None:
        return ()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise BadRowError(f"{name!r} must be a list of texts, it is {brief(values)}")
    for i, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise BadRowError(f"{name}[{i}] must be text that is not empty, it is {brief(value)}")
    return tuple(values)
