"""YAML text to plain values with their lines, and back: the one file that knows yaml.

The dialect is YAML 1.2's core scalars without its surprises: `1e-5` is a number, `no` and `12:30` and
`2024-01-01` are text, a key given twice and anchors are problems with a line. Nothing is executed.
"""

# yaml's stubs leave most of its types out.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportIncompatibleVariableOverride=false

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeGuard, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the top."""

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML text as plain values.

    Attributes:
        value: Dicts, lists, text, numbers, booleans and None.
        lines: The line of each value's key (of a list item: of the item), counted from 1.
        problems: (path, line, message) of what was read but should not stand there.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict[KeyPath, int])
    problems: list[tuple[KeyPath, int, str]] = field(default_factory=list[tuple[KeyPath, int, str]])


class YamlSyntaxError(Exception):
    """The text is not YAML.

    Attributes:
        line: Where, counted from 1.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise YamlSyntaxError(mark.line + 1, "a value that begins with '*' needs quotes")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Knows yaml 1.1's scalars too, so that other readers of a dumped recipe see the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> ScalarNode:
        # Only double quotes keep line breaks on one line.
        return self.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


_SCALARS = {
    "null": (r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    "bool": (r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        # A point or an exponent makes it a float; yaml 1.1 wants both, and takes 1e-5 for text.
        r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+.0123456789"),
    ),
}
for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^{_pattern}$"), _first)


def parse_yaml(text: str) -> Document:
    r"""Returns the values of a YAML text with their lines.

        >>> document = parse_yaml("train:\n  learning_rate: 1e-5\n")
        >>> document.value
        {'train': {'learning_rate': 1e-05}}
        >>> document.lines
        {('train',): 1, ('train', 'learning_rate'): 2}

    Raises:
        YamlSyntaxError: The text is not one YAML document.
    """
    root = _compose(text)
    document = Document()
    if root is None:
        return document
    return Document(_value_of(root, (), document), document.lines, document.problems)


def parse_value(text: str) -> Document:
    """Returns the value of a command-line override.

        >>> parse_value("[full, base]").value
        ['full', 'base']

    Raises:
        YamlSyntaxError: The text is not one YAML value, or goes on after it.
    """
    root = _compose(text)
    end = root.end_mark.index if root is not None else 0
    if text[end:].strip():
        raise YamlSyntaxError(1, "what follows ' #' would be a comment; put the value in quotes")
    return parse_yaml(text)


def format_value(value: Any) -> str:
    """Returns a value as YAML on one line, which `parse_value` reads back.

    >>> format_value({1: 0.5, 2: 0.5})
    '{1: 0.5, 2: 0.5}'
    >>> format_value("null")
    "'null'"
    """
    text = yaml.dump(
        _plain(value),
        Dumper=_Dumper,
        default_flow_style=True,
        allow_unicode=True,
        sort_keys=False,
        width=float("inf"),
    )
    return text.removesuffix("\n").removesuffix("\n...")


def as_mapping(value: Any) -> dict[str | int, Any] | None:
    """Returns a value read from YAML when it is a mapping, else None."""
    return cast(dict[str | int, Any], value) if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _compose(text: str) -> Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = (error.problem or "cannot be read").replace("\t", "\\t")
        if "another document" in message:
            message = "a second document begins here; keep one"
        if "'\\t'" in message:
            message += "; indent with spaces"
        raise YamlSyntaxError((mark.line if mark else 0) + 1, message) from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise YamlSyntaxError(line, f"character {chr(error.character)!r} is not allowed") from error


def _value_of(node: Node, path: KeyPath, document: Document) -> Any:
    if isinstance(node, MappingNode):
        return _mapping_of(node, path, document)
    if isinstance(node, SequenceNode):
        items: list[Any] = []
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
            items.append(_value_of(item, (*path, index), document))
        return items
    return _scalar_of(node, path, document)


def _mapping_of(node: MappingNode, path: KeyPath, document: Document) -> dict[Any, Any]:
    entries: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = _scalar_of(key_node, path, document)
        if not _is_key(key):
            message = f"a key must be a word or a whole number, got {format_value(key)}"
            document.problems.append((path, line, message))
            continue
        here = (*path, key)
        if key in entries:
            message = f"given twice, first in line {document.lines[here]}; keep one"
            document.problems.append((here, line, message))
        document.lines[here] = line
        entries[key] = _value_of(value_node, here, document)
    return entries


def _is_key(value: Any) -> TypeGuard[str | int]:
    return type(value) in (str, int)


def _scalar_of(node: Node, path: KeyPath, document: Document) -> Any:
    if not isinstance(node, ScalarNode):
        return _value_of(node, path, document)
    kind = node.tag.removeprefix(_TAG)
    text: str = node.value
    try:
        return _SCALAR_READERS[kind](text)
    except (KeyError, ValueError):
        message = f"{text[:40]!r} cannot be read as {node.tag}; write the value without a tag"
        document.problems.append((path, node.start_mark.line + 1, message))
        return text


def _read_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _read_bool(text: str) -> bool:
    return text.lower() == "true"


def _read_null(text: str) -> None:
    return None


_SCALAR_READERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": _read_float,
    "null": _read_null,
    "bool": _read_bool,
}
