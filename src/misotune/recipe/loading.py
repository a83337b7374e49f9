"""Reads a recipe: a YAML file, then `key.sub=value` overrides, then defaults; knows each value's origin."""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from misotune.errors import RecipeError
from misotune.recipe.checking import NEEDS_QUOTES, Problem, check_recipe
from misotune.recipe.mixture import MixtureFile, check_mixture, mixture_json_schema
from misotune.recipe.resolved import DEFAULT, ResolvedRecipe, leaves
from misotune.recipe.schema import SECTIONS, Recipe
from misotune.recipe.wording import Schema, example_of, known_part
from misotune.recipe.yaml_text import (
    KeyPath,
    YamlSyntaxError,
    as_mapping,
    parse_value,
    parse_yaml,
)

_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED_FOLDERS = (_PACKAGE / "shipped_recipes", _PACKAGE.parents[1] / "recipes")
"""Where the recipes that come with misotune lie: in an installed package, or in a source checkout."""

T = TypeVar("T")

_OVERRIDE = re.compile(r"(?P<key>\w+(?:\.\w+)*)=(?P<value>.*)", re.DOTALL)


class Place(NamedTuple):
    """Where a value was written; places sort as they are reported: by line, then by flag.

    Attributes:
        rank: 0 in the file, 1 in a flag.
        position: Line number, or which flag.
        text: `recipes/x.yaml:12`, or the flag as it was typed.
    """

    rank: int
    position: int
    text: str

    @property
    def origin(self) -> str:
        """The place as the resolved recipe names it."""
        return f"flag {self.text}" if self.rank else self.text


@dataclass(slots=True)
class _Draft:
    """Values while they are gathered."""

    values: Any
    places: dict[KeyPath, Place]
    reports: list[tuple[Place, str]] = field(default_factory=list[tuple[Place, str]])

    def place_of(self, path: KeyPath) -> Place:
        """Returns the place of the nearest value at or above `path`."""
        return next(self.places[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.places)


def shipped_recipes() -> list[Path]:
    """Returns the recipes that come with misotune, by name."""
    return _shipped("*.yaml")


def shipped_mixtures() -> list[Path]:
    """Returns the mixture files that come with misotune, by name."""
    return _shipped("mixtures/*.yaml")


def _shipped(pattern: str) -> list[Path]:
    folder = next((folder for folder in SHIPPED_FOLDERS if folder.is_dir()), None)
    return sorted(folder.glob(pattern)) if folder else []


def find_recipe(text: str) -> Path:
    """Returns the recipe file that `text` names: a path, or else a shipped recipe (`llama3_crab`).

    Raises:
        RecipeError: There is no such file.
    """
    return _find(text, "recipe", Path("recipes"), shipped_recipes())


def find_mixture(text: str) -> Path:
    """Returns the mixture file that `text` names: a path, or else a shipped one (`chat_code_math_tools`).

    Raises:
        RecipeError: There is no such file.
    """
    return _find(text, "mixture", Path("recipes/mixtures"), shipped_mixtures())


def _find(text: str, kind: str, folder: Path, files: Sequence[Path]) -> Path:
    path = Path(text)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in files}
    if path.parent in (Path(), folder) and path.suffix in ("", ".yaml") and path.stem in shipped:
        return shipped[path.stem]
    near = get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    what = f"is a folder, not a {kind}" if path.is_dir() else f"no such {kind}"
    raise RecipeError(f"{text}: {what}; {hint}shipped {kind}s: {', '.join(shipped)}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Returns the recipe in a YAML file, changed by overrides and completed by defaults.

    Args:
        path: The file.
        overrides: `key.sub=value`, the value as YAML; a later one wins.

    Raises:
        RecipeError: The file cannot be read, or keys or values are wrong: one line per problem, each with its
            place (file and line, or the flag), the key, and what is allowed.
    """
    recipe, draft = _load(path, overrides, check_recipe, None)
    return ResolvedRecipe(recipe, _origins(draft, recipe))


def load_mixture_file(path: Path, overrides: Sequence[str] = ()) -> tuple[MixtureFile, Callable[[KeyPath], str]]:
    """Returns the mixture in a YAML file, changed by overrides, and where a value of it was written.

    Args:
        path: The file.
        overrides: `key=value`, the value as YAML; a later one wins.

    Raises:
        RecipeError: As for `load_recipe`.
    """
    mixture, draft = _load(path, overrides, check_mixture, mixture_json_schema())
    return mixture, lambda key: draft.place_of(key).text


def _load(
    path: Path, overrides: Sequence[str], check: Callable[[Any], T | list[Problem]], root: Schema | None
) -> tuple[T, _Draft]:
    draft = _read_file(
        path, "recipe: misotune recipe show quickstart" if root is None else "mixture: chat_code_math_tools"
    )
    for index, override in enumerate(overrides):
        _apply_override(draft, override, index, root)
    result = check(draft.values)
    if isinstance(result, list):
        draft.reports += [_report(draft, problem) for problem in cast(list[Problem], result)]
        result = None
    if result is None or draft.reports:
        lines = [f"{place.text}: {message}" for place, message in sorted(draft.reports)]
        raise RecipeError("\n".join(dict.fromkeys(lines)))
    return result, draft


def _read_file(path: Path, example: str) -> _Draft:
    name = _short_name(path)
    try:
        document = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: not UTF-8 text") from error
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror}") from error
    except YamlSyntaxError as error:
        raise RecipeError(f"{name}:{error.line}: not valid YAML: {error}") from error
    if document.value is None:
        raise RecipeError(f"{name}: empty; begin from a shipped {example}")
    places = {key: Place(0, line, f"{name}:{line}") for key, line in document.lines.items()}
    places[()] = Place(0, 0, name)
    draft = _Draft(document.value, places)
    for key, line, message in document.problems:
        draft.reports.append((Place(0, line, f"{name}:{line}"), _with_key(key, message)))
    return draft


def _apply_override(draft: _Draft, override: str, index: int, root: Schema | None) -> None:
    place = Place(1, index, override)
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        draft.reports.append((place, "not an override; write key.sub=value, as in train.max_steps=20"))
        return
    key, text = match["key"], match["value"]
    path: KeyPath = tuple(key.split("."))
    try:
        document = parse_value(text)
    except YamlSyntaxError as error:
        draft.reports.append((place, f"not valid YAML: {error}{_quoted(key, text)}"))
        return
    problems = [_with_key((*path, *below), message) for below, _, message in document.problems]
    if not text.strip():
        problems.append(f"no value; for null write {key}=null")
    if message := _not_below(path, root):
        problems.append(message)
    draft.reports += [(place, message) for message in problems]
    if not problems:
        _set_value(draft, path, document.value, place)


def _not_below(path: KeyPath, root: Schema | None) -> str | None:
    """Returns what is wrong with a key that goes on below a field."""
    known = known_part(path, root)
    if known in ((), path) or (root is None and len(known) == 1 and known[0] in SECTIONS):
        return None
    key = ".".join(map(str, known))
    return f"{key} has no keys below it; set it whole: {key}={example_of(known, root)}"


def _set_value(draft: _Draft, path: KeyPath, value: Any, place: Place) -> None:
    """Sets a value and its place; sections that are null or missing on the way begin empty."""
    *parents, last = path
    values = as_mapping(draft.values)
    for depth, part in enumerate(parents, start=1):
        if values is not None and values.get(part) is None:
            values[part] = {}
            draft.places[path[:depth]] = place
        values = as_mapping((values or {}).get(part))
    if values is None:
        return  # a value stands in the file where a section belongs: reported as such
    values[last] = value
    draft.places = {key: old for key, old in draft.places.items() if key[: len(path)] != path}
    draft.places[path] = place


def _report(draft: _Draft, problem: Problem) -> tuple[Place, str]:
    path = problem.path
    place = max(draft.place_of(each) for each in (path, *problem.partners))
    if problem.partners:  # a rule between fields: its message names them
        return place, problem.message
    key = ".".join(map(str, path))
    if place.rank and place.text.startswith(f"{key}="):
        text = place.text.removeprefix(f"{key}=")
        return place, problem.message + (_quoted(key, text) if problem.message.endswith(NEEDS_QUOTES) else "")
    return place, _with_key(path, problem.message)


def _quoted(key: str, text: str) -> str:
    """Returns the override as text for the shell, which takes one pair of quotes away."""
    return f"; as text: {shlex.quote(key + '=' + json.dumps(text, ensure_ascii=False))}"


def _with_key(path: KeyPath, message: str) -> str:
    return f"{'.'.join(map(str, path))}: {message}" if path else message


def _origins(draft: _Draft, recipe: Recipe) -> dict[str, str]:
    def origin(path: tuple[str, ...]) -> str:
        values = draft.values
        for part in path:
            if part not in values:
                return DEFAULT
            values = values[part]
        return draft.place_of(path).origin

    return {".".join(path): origin(path) for path, _ in leaves(recipe)}


def _short_name(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
