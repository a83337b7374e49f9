"""What a recipe key takes, in words; read off the JSON schema, so that types and messages cannot disagree.

`root` is the JSON schema of the file concerned; None: a recipe's.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, cast

from misotune.recipe.schema import SECTIONS, recipe_json_schema
from misotune.recipe.yaml_text import KeyPath, as_mapping, format_value

Schema = Mapping[str, Any]


def known_part(path: KeyPath, root: Schema | None = None) -> KeyPath:
    """Returns the longest beginning of `path` that is a section or field of a recipe."""
    for end in range(len(path), 0, -1):
        if _schema_at(path[:end], root) is not None:
            return path[:end]
    return ()


def keys_of(path: KeyPath, root: Schema | None = None) -> tuple[str, ...]:
    """Returns the keys of the section at `path`; none when it is a field."""
    schema = _schema_at(path, root)
    return tuple(_section(schema, root).get("properties", ())) if schema is not None else ()


def allowed_values(path: KeyPath, root: Schema | None = None) -> str:
    """Returns what the field or section at `path` takes.

    >>> allowed_values(("train", "max_steps"))
    'a whole number >= 1, or null'
    """
    schema = _schema_at(path, root)
    return _describe(schema if schema is not None else {}, root)


def example_of(path: KeyPath, root: Schema | None = None) -> str:
    """Returns a value that the field at `path` takes, as YAML."""
    schema: Schema = _schema_at(path, root) or {}
    return _written(schema["examples"][0]) if "examples" in schema else "VALUE"


def nearest_value(path: KeyPath, value: Any, root: Schema | None = None) -> str | None:
    """Returns the allowed word that is nearest to a wrong one (in a list: the first wrong one), or None."""
    options = _words(_schema_at(path, root) or {})
    entries = cast(list[Any], value) if isinstance(value, list) else [value]
    wrong = [entry for entry in entries if entry not in options]
    return _nearest(str(wrong[0]), options) if wrong else None


def nearest_key(path: KeyPath, root: Schema | None = None) -> str | None:
    """Returns the key probably meant by the unknown key at `path`, dotted when in another section."""
    *parents, key = path
    section, key = tuple(parents), str(key)
    if root is not None:
        return _nearest(key, keys_of(section, root))
    elsewhere = {name: f"{part}.{name}" for part in reversed(SECTIONS) for name in keys_of((part,))}
    elsewhere |= {name: name for name in keys_of(())}
    same = _nearest(key, keys_of(section))
    if key in elsewhere:
        return elsewhere[key]
    return same or elsewhere.get(_nearest(key, tuple(elsewhere)) or "")


def _nearest(word: str, options: Sequence[str]) -> str | None:
    return next(iter(get_close_matches(word, options, n=1)), None)


@cache
def _root() -> Schema:
    return recipe_json_schema()


def _schema_at(path: KeyPath, root: Schema | None) -> Schema | None:
    schema: Schema | None = _root() if root is None else root
    for part in path:
        schema = _schema_below(_section(schema, root), part)
        if schema is None:
            return None
    return schema


def _schema_below(section: Schema, part: str | int) -> Schema | None:
    """Returns the schema of a key, of a list's section, or of a list in a mapping; other values are read whole."""
    if isinstance(part, int):
        items = section.get("items", {})
        return items if "$ref" in items else None
    others: Any = section.get("additionalProperties")
    if isinstance(others, dict) and "items" in others:
        return cast(Schema, others)
    return section.get("properties", {}).get(part)


def _section(schema: Schema, root: Schema | None) -> Schema:
    """Returns the schema that a reference, or a reference or null, stands for."""
    for option in (schema, *schema.get("anyOf", ())):
        if "$ref" in option:
            return (_root() if root is None else root)["$defs"][option["$ref"].rpartition("/")[2]]
    return schema


def _words(schema: Schema) -> list[str]:
    options = [schema, schema.get("items", {}), *schema.get("anyOf", ())]
    return [word for option in options for word in option.get("enum", ())]


def _describe(schema: Schema, root: Schema | None) -> str:
    if "anyOf" in schema:
        return ", or ".join(_describe(option, root) for option in schema["anyOf"])
    if "$ref" in schema:
        return f"a section with the keys {', '.join(_section(schema, root)['properties'])}"
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "patternErrorMessage" in schema:
        return schema["patternErrorMessage"]
    if schema.get("type") == "array":
        once = ", each once" if schema.get("uniqueItems") else ""
        items = _describe(schema["items"], root).removeprefix("one of ").replace("a section", "sections")
        return f"a list (not empty) of {items}{once}"
    if schema.get("type") == "object":
        return f"a mapping such as {_written(schema['examples'][0])}"
    return _SCALARS[schema["type"]] + _bounds(schema)


_SCALARS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text (not empty)",
    "null": "null",
}


def _bounds(schema: Schema) -> str:
    bounds = [
        f"{sign} {schema[key]:g}" if isinstance(schema[key], float) else f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return " " + " and ".join(bounds) if bounds else ""


def _written(example: Any) -> str:
    # JSON has only text keys; in YAML the keys of a mapping may be whole numbers.
    mapping = as_mapping(example)
    if mapping is None:
        return format_value(example)
    return format_value({int(key) if str(key).isdigit() else key: value for key, value in mapping.items()})
