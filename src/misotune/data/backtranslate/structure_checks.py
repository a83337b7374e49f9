"""Our own verifiers of structure: lists, Markdown, code. Each docstring is the strict definition."""

import re
from collections.abc import Callable

from misotune.data.backtranslate import text as parts
from misotune.data.backtranslate.text import Text

_DEFINED = re.compile(r"\b(?:def|function|func|fn)\s+([A-Za-z_]\w*)\s*\(")
_SENTENCE_LINE = re.compile(r"^[A-Z][a-z]+(?: [a-z']+){4,}.*[.:]$", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|\s)#|//|/\*|<!--|^\s*--", re.MULTILINE)


def _max_line_characters(response: Text, num_characters: int) -> bool:
    """No line of code is longer; a tab counts as one."""
    return all(len(line.rstrip()) <= num_characters for line in response.code.split("\n"))


def _max_code_lines(response: Text, num_lines: int) -> bool:
    """The code has at most so many lines that are not blank."""
    return sum(1 for line in response.code.split("\n") if line.strip()) <= num_lines


def _bullets(response: Text, num_items: int) -> bool:
    """At least so many lines begin with a bullet (* - + •) and a space."""
    return response.num_bullets >= num_items


def _numbered_list(response: Text, num_items: int) -> bool:
    """The lines that begin with a number and . or ) count from 1 to num_items, once and in order."""
    return response.item_numbers == list(range(1, num_items + 1))


def _no_list(response: Text) -> bool:
    """No line begins with a bullet or with a number and . or )."""
    return not response.is_list


def _headings(response: Text, num_headings: int) -> bool:
    """At least so many lines outside code are Markdown headings."""
    return response.num_headings >= num_headings


def _table(response: Text) -> bool:
    """There is a Markdown table: a row of dashes between upright bars."""
    return parts.TABLE_RULE.search(response.text) is not None


def _plain_text(response: Text) -> bool:
    """No Markdown: no bold, headings, lists, tables, code marks."""
    is_marked = any(mark in response.text for mark in ("**", "__", "`"))
    return not (is_marked or response.num_headings or response.is_list or _table(response))


def _code_blocks(response: Text, num_blocks: int) -> bool:
    """Exactly so many fenced code blocks, every fence closed."""
    return len(response.code_blocks) == num_blocks and response.text.count("```") == 2 * num_blocks


def _code_language(response: Text, language: str) -> bool:
    """There is fenced code and the first fence has this label, in upper or lower case."""
    labels = parts.FENCE_LABEL.findall(response.text)
    return bool(response.code_blocks) and labels[0].lower() == language.lower()


def _bare_code(response: Text) -> bool:
    """Most lines are code, none is a fence, and none is a sentence of five words or more outside a comment."""
    return "```" not in response.text and response.is_bare_code and not _SENTENCE_LINE.search(response.text)


def _function_name(response: Text, name: str) -> bool:
    """The code defines a function of this name."""
    return name in _DEFINED.findall(response.code)


def _no_comments(response: Text) -> bool:
    """No mark of a comment stands in the code (#, //, /*, <!--, -- at the start of a line)."""
    return bool(response.code) and _COMMENT.search(response.code) is None


def _comments(response: Text) -> bool:
    """At least one line of the code begins with # or // or holds /*."""
    return re.search(r"^\s*(?:#(?!include|define|!)|//)|/\*", response.code, re.MULTILINE) is not None


def _no_imports(response: Text) -> bool:
    """No line of the code begins with import, from, #include, using or require."""
    return (
        bool(response.code)
        and re.search(r"^\s*(?:import|from|#include|using|.*\brequire\()", response.code, re.M) is None
    )


STRUCTURE_CHECKS: dict[str, Callable[..., bool]] = {
    "list:bullets": _bullets,
    "list:numbered": _numbered_list,
    "list:none": _no_list,
    "markdown:headings": _headings,
    "markdown:table": _table,
    "markdown:none": _plain_text,
    "code:blocks": _code_blocks,
    "code:language": _code_language,
    "code:bare": _bare_code,
    "code:function_name": _function_name,
    "code:no_comments": _no_comments,
    "code:comments": _comments,
    "code:no_imports": _no_imports,
    "code:max_line_characters": _max_line_characters,
    "code:max_lines": _max_code_lines,
}
