"""Checks the plain values of a recipe and puts every problem into words."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from misotune.recipe.rules import find_conflicts
from misotune.recipe.schema import SECTIONS, Recipe
from misotune.recipe.wording import Schema, allowed_values, keys_of, known_part, nearest_key, nearest_value
from misotune.recipe.yaml_text import KeyPath, as_mapping, format_value

MAX_SHOWN = 60
NEEDS_QUOTES = "; put it in quotes"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a recipe.

    Attributes:
        path: The value concerned.
        message: What is wrong and what is allowed.
        partners: For a rule between fields, which its message names: the other values concerned.
    """

    path: KeyPath
    message: str
    partners: tuple[KeyPath, ...] = ()


def check_recipe(values: Any) -> Recipe | list[Problem]:
    """Returns the recipe that `values` describe, or else all that is wrong with them."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = field_problems(error, values)
    bad = {problem.path for problem in problems}
    bad |= {meant for path in bad if (meant := _meant_path(path))}
    return problems + list(_rule_problems(values, bad))


def field_problems(error: ValidationError, values: Any, root: Schema | None = None) -> list[Problem]:
    """Returns a problem per key: a union reports one key once for each of its types.

    Args:
        error: What the model said.
        values: What it was given.
        root: The model's JSON schema; None: a recipe's.
    """
    kinds: dict[KeyPath, tuple[str, str]] = {}
    for entry in error.errors(include_url=False):
        kind, loc = entry["type"], entry["loc"]
        unknown = kind in ("extra_forbidden", "invalid_key")
        path = loc if unknown or kind == "missing" else known_part(loc, root)
        if path or kind != "value_error":  # a rule between fields: `_rule_problems` reports these
            kinds.setdefault(path, ("unknown" if unknown else kind, entry["msg"]))
    meant = {_meant_path(path, root) for path, (kind, _) in kinds.items() if kind == "unknown"}
    return [
        Problem(path, _describe_problem(path, kind, message, values, root))
        for path, (kind, message) in kinds.items()
        if not (kind == "missing" and path in meant)
    ]


def _describe_problem(path: KeyPath, kind: str, message: str, values: Any, root: Schema | None) -> str:
    if kind == "unknown":
        near = nearest_key(path, root)
        hint = f"did you mean {near!r}? " if near else ""
        return f"unknown key; {hint}allowed: {', '.join(keys_of(path[:-1], root))}"
    allowed = allowed_values(path, root) if path else f"a mapping with the keys {', '.join(keys_of((), root))}"
    if kind == "missing":
        return f"missing; must be {allowed}"
    value = value_at(values, path)
    if kind == "value_error":
        return f"got {_show(value)}; {message.removeprefix('Value error, ')}"
    if kind == "finite_number":
        allowed = allowed.replace("a number", "a finite number")
    near = nearest_value(path, value, root)
    hint = f"; did you mean {near!r}?" if near else ""
    if kind == "string_type" and isinstance(value, bool | int | float):
        hint = NEEDS_QUOTES
    return f"got {_show(value)}; must be {allowed}{hint}"


def _rule_problems(values: Any, bad: set[KeyPath]) -> Iterator[Problem]:
    def value_of(key: str) -> Any:
        section, name = key.split(".")
        entries = as_mapping((as_mapping(values) or {}).get(section))
        if entries is None or not bad.isdisjoint({(section,), (section, name)}):
            raise KeyError(key)
        # A required field that is missing is in `bad`, so there is a default.
        return entries[name] if name in entries else SECTIONS[section].model_fields[name].default

    for rule, message in find_conflicts(value_of):
        first, *others = (tuple(key.split(".")) for key in rule.fields)
        yield Problem(first, message, tuple(others))


def _meant_path(path: KeyPath, root: Schema | None = None) -> KeyPath | None:
    """Returns the path of the key that an unknown key probably stands for."""
    if not path or known_part(path, root) == path:
        return None
    near = nearest_key(path, root)
    if near is None:
        return None
    return tuple(near.split(".")) if "." in near or len(path) == 1 else (*path[:-1], near)


def value_at(values: Any, path: KeyPath) -> Any:
    """Returns the value at `path`, which exists."""
    for part in path:
        values = values[part]
    return values


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else format_value(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
