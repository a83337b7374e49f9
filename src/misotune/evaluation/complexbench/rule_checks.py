"""What ComplexBench's rules check of a text, as the published `evaluation/con_rule.py` does, oddities included."""

import json
import string
from collections.abc import Callable, Sequence
from typing import Any

Check = Callable[[str, Any], bool]
# The least and the greatest number of the words that follow.
Counted = tuple[int, int, Sequence[str]]

_CHINESE = str.maketrans("!#$%&(),.:;?*\\^“”", '！＃＄％＆（），。：；？＊＼＾""')  # noqa: RUF001
_OPENING = ('"', "“", "`")
_CLOSING = ('"', "”", "`")
_STOPS = ("", "。", "？")  # noqa: RUF001


def chinese_punctuation(text: str) -> str:
    """Returns the text with the punctuation of ASCII made Chinese where the two differ, and quotation marks straight.

    >>> chinese_punctuation("Yes. “no”-") == 'Yes。 "no"-'
    True
    """
    return text.translate(_CHINESE)


def unquoted(text: str) -> str:
    """Returns the text without line breaks before it, and without the quotation marks around it."""
    text = text.lstrip("\n")
    return text[1:-1] if text.startswith(_OPENING) and text.endswith(_CLOSING) else text


def has_all(text: str, words: Sequence[str]) -> bool:
    """Whether all words are in the text."""
    return all(chinese_punctuation(word) in text for word in words)


def has_none(text: str, words: Sequence[str]) -> bool:
    """Whether none of the words is in the text."""
    return not any(chinese_punctuation(word) in text for word in words)


def has_all_and_none(text: str, words: tuple[Sequence[str], Sequence[str]]) -> bool:
    """Whether all of the first words are in the text, and none of the others."""
    return has_all(text, words[0]) and has_none(text, words[1])


def has_counted(text: str, wanted: Counted) -> bool:
    """Whether as many of the words as wanted are in the text."""
    low, high, words = wanted
    return low <= sum(chinese_punctuation(word) in text for word in words) <= high


def has_counted_and_none(text: str, wanted: tuple[Counted, Sequence[str]]) -> bool:
    """Whether as many of the first words as wanted are in the text, and none of the others."""
    return has_counted(text, wanted[0]) and has_none(text, wanted[1])


def is_text(text: str, wanted: str) -> bool:
    """Whether the text is the one that is wanted, a full stop after it or not."""
    return text in (wanted, wanted + "。", wanted + ".")


def starts(text: str, start: str) -> bool:
    """Whether the text begins so."""
    return text.startswith(chinese_punctuation(start))


def ends(text: str, end: str) -> bool:
    """Whether the text ends so, a Chinese full stop or question mark after it or not."""
    return text.endswith(tuple(chinese_punctuation(end) + stop for stop in _STOPS))


def starts_and_ends(text: str, both: tuple[str, str]) -> bool:
    """Whether the text begins with the first and ends with the second."""
    return starts(text, both[0]) and ends(text, both[1])


def is_long(text: str, span: Sequence[float]) -> bool:
    """Whether the number of characters is in the span, its ends included."""
    return span[0] <= len(text) <= span[1]


def has_num_words(text: str, span: Sequence[float]) -> bool:
    """Whether the number of words between blanks is in the span, its ends included."""
    return span[0] <= len(text.split()) <= span[1]


def has_only(text: str, marks: Sequence[str]) -> bool:
    """Whether the text has no punctuation but these marks."""
    allowed = {chinese_punctuation(mark) for mark in marks}
    return not any(mark in text and mark not in allowed for mark in chinese_punctuation(string.punctuation))


def is_json(text: str, keys: Sequence[str]) -> bool:
    """Whether the first object in the text has just these keys; no keys: any object."""
    wanted = [key for key in keys if key != ""]
    try:
        found = json.loads(_first_braces(text))
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    return not wanted or (all(key in found for key in wanted) and len(found) == len(wanted))


def _first_braces(text: str) -> str:
    """Returns the text from the first brace to the one that closes it; braces in strings count too."""
    start = depth = 0
    for index, char in enumerate(text):
        if char == "{":
            start = index if depth == 0 else start
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return text[start : index + 1]
    return ""


def chinese(check: Check) -> Check:
    """Makes a check one of the text with Chinese punctuation."""
    return lambda text, argument: check(chinese_punctuation(text), argument)


def either(check: Check) -> Check:
    """Makes a check one of the text with or without the quotation marks around it."""
    return lambda text, argument: check(text, argument) or check(unquoted(text), argument)


def negated(check: Check) -> Check:
    """Makes a check its contrary."""
    return lambda text, argument: not check(text, argument)
