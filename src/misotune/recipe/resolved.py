"""A recipe with where each value came from, and its text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel

from misotune.recipe.schema import Recipe
from misotune.recipe.yaml_text import format_value

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe after overrides and defaults.

    Attributes:
        recipe: The values.
        origins: Dotted key -> `recipes/x.yaml:12`, `flag key=value` or `default`; a null section has one.
    """

    recipe: Recipe
    origins: Mapping[str, str]


class RecipeLine(NamedTuple):
    """One line of a recipe's YAML.

    Attributes:
        depth: 0 at the top, 1 inside a section.
        key: The key alone.
        value: The value as YAML; empty for the head of a section.
        origin: Where the value came from; empty for the head of a section.
    """

    depth: int
    key: str
    value: str
    origin: str

    @property
    def text(self) -> str:
        """The line without its origin."""
        return f"{'  ' * self.depth}{self.key}:{' ' if self.value else ''}{self.value}"


def leaves(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the path and value of every field, in the recipe's order; a null section counts as one."""
    for name in Recipe.model_fields:
        value = getattr(recipe, name)
        if isinstance(value, BaseModel):
            yield from (((name, key), getattr(value, key)) for key in type(value).model_fields)
        else:
            yield (name,), value


def list_lines(resolved: ResolvedRecipe) -> list[RecipeLine]:
    """Returns the recipe as lines of YAML, each value with its origin."""
    lines: list[RecipeLine] = []
    section = None
    for path, value in leaves(resolved.recipe):
        *parents, key = path
        if parents and path[0] != section:
            section = path[0]
            lines.append(RecipeLine(0, section, "", ""))
        origin = _printable(resolved.origins[".".join(path)])
        lines.append(RecipeLine(len(parents), key, format_value(value), origin))
    return lines


def origin_column(lines: list[RecipeLine], longest: int = 60) -> int:
    """Returns the column at which the origins line up; lines over `longest` stick out."""
    return max(len(line.text) for line in lines if len(line.text) <= longest)


def dump(resolved: ResolvedRecipe) -> str:
    """Returns the recipe as YAML with each value's origin as a comment; it loads again to the same recipe."""
    lines = list_lines(resolved)
    column = origin_column(lines)
    texts = (f"{line.text:<{column}}  # {line.origin}" if line.origin else line.text for line in lines)
    return "\n".join(texts) + "\n"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
