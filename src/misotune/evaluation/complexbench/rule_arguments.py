"""The argument in the text of a ComplexBench rule: words, numbers, or a text that goes on to the rule's end."""

import ast
import re
from collections.abc import Callable
from typing import Any

from misotune.evaluation.complexbench.rule_checks import Counted

_TEXT = r"(.*?)$"
_LIST = r"(\[.*?\])$"


def text_of(name: str, flags: int = re.DOTALL) -> Callable[[str], str]:
    """Returns a reader of `name:TEXT`."""
    return lambda rule: _groups(rule, rf"{name}:{_TEXT}", flags)[0]


def two_texts_of(first: str, second: str) -> Callable[[str], tuple[str, ...]]:
    """Returns a reader of `first:TEXT` and, on the next line, `second:TEXT`."""
    return lambda rule: _groups(rule, rf"{first}:(.*?)\n{second}:{_TEXT}", re.DOTALL)


def words_of(name: str) -> Callable[[str], list[str]]:
    """Returns a reader of `name:[WORD, ...]`."""
    return lambda rule: [word.strip() for word in _split(_groups(rule, rf"{name}:{_LIST}")[0])]


def counted_of(name: str) -> Callable[[str], Counted]:
    """Returns a reader of `name:[LEAST, MOST, WORD, ...]`."""
    return lambda rule: _counted(rule, words_of(name)(rule))


def counted_with_blanks_of(name: str) -> Callable[[str], Counted]:
    """Returns a reader of `name:[LEAST, MOST, WORD, ...]` whose words keep the blanks around them."""
    return lambda rule: _counted(rule, _split(_groups(rule, rf"{name}:{_LIST}", re.DOTALL)[0]))


def counted_and_words_of(first: str, second: str) -> Callable[[str], tuple[Counted, list[str]]]:
    """Returns a reader of `first:[LEAST, MOST, WORD, ...]` and `second:[WORD, ...]`; all words keep their blanks."""

    def read(rule: str) -> tuple[Counted, list[str]]:
        counted, words = _groups(rule, rf"{first}:(\[.*?\])\n{second}:{_LIST}", re.DOTALL)
        return _counted(rule, _split(counted)), _split(words)

    return read


def span_of(name: str) -> Callable[[str], list[float]]:
    """Returns a reader of `name:[LEAST, MOST]`."""

    def read(rule: str) -> list[float]:
        span = _literal(rule, _groups(rule, rf"{name}:{_LIST}", re.DOTALL)[0])
        if len(span) < 2 or not all(isinstance(number, (int, float)) for number in span):
            raise ValueError(f"rule {rule!r} needs two numbers")
        return span

    return read


def keys_of(name: str) -> Callable[[str], list[Any]]:
    """Returns a reader of `name:["KEY", ...]`."""
    return lambda rule: _literal(rule, _groups(rule.strip(), rf"{name}:{_LIST}", re.DOTALL)[0])


def _groups(rule: str, pattern: str, flags: int = 0) -> tuple[str, ...]:
    found = re.search(pattern, rule, flags)
    if found is None:
        raise ValueError(f"the argument of rule {rule!r} cannot be read")
    return found.groups()


def _split(words: str) -> list[str]:
    return words.strip("[]").split(",")


def _literal(rule: str, argument: str) -> list[Any]:
    try:
        return ast.literal_eval(argument)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"the argument of rule {rule!r} cannot be read") from error


def _counted(rule: str, words: list[str]) -> Counted:
    try:
        return int(words[0]), int(words[1]), words[2:]
    except (ValueError, IndexError) as error:
        raise ValueError(f"the list of rule {rule!r} must begin with two numbers") from error
