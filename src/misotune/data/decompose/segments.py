"""Cutting an instruction into sentences and list items, and marking what is material and not orders.

Material is what the task works on: code, quotations, a passage behind a colon, the lines of a list that
belongs to the content. Quotations and code are never cut.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# rest: a further sentence, or an indented further line, of an item
Kind = Literal["sentence", "item", "rest"]

# Quoted text is one piece, whatever stands in it. Order counts: long marks before short ones.
_QUOTED = re.compile(
    r"```.*?(?:```|\Z)|\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)|\"[^\"\n]{0,2000}\"|“[^”]{0,2000}”|«[^»]{0,2000}»"
    r"|`[^`\n]+`|(?<!\w)'[^'\n]{2,200}'(?!\w)|\([^()\n]{0,300}\)|\[[^\[\]\n]{0,300}\]",
    re.DOTALL,
)
_ITEM = re.compile(r"[ \t]*(?:[-*•·\u2013+]|\(?\d{1,2}[.)]|\(?[a-zA-Z][.)]|[ivx]{1,4}[.)])[ \t]+(?=\S)")

# Words that open an order, so that a sentence may start with them in lower case or without a space before.
_ORDER = (
    r"(?:answer|respond|reply|make sure|ensure|be sure|do not|don't|avoid|refrain from|please|your (?:\w+ "
    r")?(?:response|"
    r"answer|reply|output)|in (?:your|the response)|always|never|the (?:\w+ )?(?:response|answer|reply|output|word|"
    r"letter|very)|there should|"
    r"include|highlight|wrap|limit|use|organize|mention|capitalize|finish|end|add|put|at least|response should)\b"
)
# A stop and a space; or a stop alone before what is clearly a new sentence.
_STOP = re.compile(
    r"[.!?…]+[\"'”\u2019)\]*_]*(?:[ \t]+(?=\S)|(?:(?<=[a-z)\]\"'”][.!?])(?=[A-Z][a-z']+[ \t])|(?<=\w[.!?])"
    rf"(?=(?i:{_ORDER})[ \t])))"
)
# No stop at all: "... with material componentsMake sure that ...".
_GLUED = re.compile(
    r"(?:Make sure|Do not|Your (?:answer|response|reply)|Please|There should|In your|At the end of your)[ \t]"
)
_LONGEST_ABBREVIATION = 12
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|vs|cf|Mr|Mrs|Ms|Dr|St|No|Fig|Prof|approx))\.[ \t]*$")
# No end before a small letter, unless an order follows.
_OFTEN_WITHIN = re.compile(r"(?:\b(?:etc|Inc|Ltd|Co|Corp|Jr|Sr|pp?|max|min|no|vol|ca)|\.\.|…)\.?[ \t]*$")
# `Section X. Use ...`, `at least 3. Make sure ...`: an initial or a number ends a sentence before an order only.
_INITIAL = re.compile(r"(?:\b[A-Z]|(?:^|\s)\d{1,2})\.[ \t]*$")
_STARTS_ORDER = re.compile(_ORDER, re.IGNORECASE)

# From here on to the end, the text is material.
_LABEL = re.compile(
    r"[ \t*#]*(?:input|text|article|passage|context|sentence|paragraph|document|question|q|a|code|data|story|e-?mail|"
    r"review|abstract|background|example|source|quote|transcript|content|description|user|assistant|human|plot|"
    r"comments?|message|conversation|dialogue|problem|information|hypothesis|premise|error|query|prompt|lyrics|poem|"
    r"letter|statement|resume|summary|web search results)\b[ \t]*\d*[ \t*]*:",
    re.IGNORECASE,
)
# "Translate this: Do not run." and "Fix the sentence: ...": from the colon to the end of the line.
_INLINE = re.compile(
    r"[^.?!:]*\b(?:here(?:'s| is| are)|following|this|these|below|translat\w+|summari[sz]\w+|rewrit\w+|rephras\w+|"
    r"paraphras\w+|correct\w*|fix|"
    r"classif\w+|categori[sz]\w+|proofread|edit|complete|continue|convert|identify|detect|sentence|text|phrase|"
    r"paragraph|"
    r"quote|proverb|statement|passage|review|tweet|email|input)\b[^.?!:]*:(?=[ \t]+\S)",
    re.IGNORECASE,
)
_SAYS_BELOW = re.compile(r"\b(?:following|below|this|here is|here are|here's|given)\b", re.IGNORECASE)
_CODE_LINE = re.compile(
    r"^\s*(?:[<{}\[\]@$/\\|]|import |from \w+ import|def |class |function |return\b|const |#include)|[;{}]\s*$"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A sentence or a list item of a text.

    Attributes:
        start: Where it begins, its mark (`- `) included.
        body: Where its own words begin.
        end: Where it ends.
        kind: A sentence, or an item of a list.
        line: The number of its line; an item's further lines belong to it.
        is_material: The task works on it.
    """

    start: int
    body: int
    end: int
    kind: Kind
    line: int
    is_material: bool


def masked(text: str) -> str:
    """Returns the text with quoted and bracketed parts blotted out, at the same length.

    The last character of a quotation stays where it ends a sentence, and so do the marks around it.

    >>> masked('Say "Stop. Go." Then (e.g. once) leave.')
    'Say "xxxxxxxx." Then (xxxxxxxxx) leave.'
    """
    return _QUOTED.sub(_blot, text)


def _blot(match: re.Match[str]) -> str:
    found = match.group()
    if len(found) < 3:
        return found
    end = found[-2:] if found[-2] in ".!?" else "x" + found[-1]
    return found[0] + "x" * (len(found) - 3) + end


def quoted_spans(text: str) -> list[tuple[int, int]]:
    """Returns where code and quotations stand."""
    return [match.span() for match in _QUOTED.finditer(text) if match.group()[0] not in "(["]


def segments_of(text: str) -> list[Segment]:
    r"""Returns the sentences and list items of a text, in order; between them is only white space.

    >>> text = "Name a river. Be brief.\n- No lists.\n- One line."
    >>> [text[s.body : s.end] for s in segments_of(text)]
    ['Name a river.', 'Be brief.', 'No lists.', 'One line.']
    """
    blotted = masked(text)
    segments: list[Segment] = []
    is_material = in_item = False
    start = 0
    for number, line in enumerate(blotted.split("\n")):
        if line.strip():
            raw = text[start : start + len(line)]
            item = _ITEM.match(line)
            in_item = item is not None or (in_item and line[0] in " \t")
            is_label = item is None and _LABEL.match(raw) is not None
            here = is_material or is_label or _CODE_LINE.search(raw) is not None
            inline = _INLINE.match(line) if item is None and ":" in line else None
            colon = inline.end() if inline is not None else len(line)
            for i, (first, last) in enumerate(_sentences(line, item.end() if item is not None else _indent(line))):
                kind: Kind = "item" if item is not None and i == 0 else "rest" if in_item else "sentence"
                mark = start + (_indent(line) if kind == "item" else first)
                segments.append(Segment(mark, start + first, start + last, kind, number, here or first > colon))
            opens = item is None and raw.rstrip().endswith(":") and _SAYS_BELOW.search(raw) is not None
            is_material = (
                is_material
                or is_label
                or opens
                or (inline is not None and _SAYS_BELOW.search(inline.group()) is not None)
            )
        start += len(line) + 1
    return segments


def _sentences(line: str, start: int) -> Iterator[tuple[int, int]]:
    for end in _possible_ends(line, start):
        if end > start and _is_end(line, start, end):
            yield start, start + len(line[start:end].rstrip())
            start = end
    end = len(line.rstrip())
    if start < end:
        yield start, end


def _possible_ends(line: str, start: int) -> list[int]:
    ends = [match.end() for match in _STOP.finditer(line, start)]
    glued = [match.start() for match in _GLUED.finditer(line, start + 1) if line[match.start() - 1].islower()]
    return sorted([*ends, *glued]) if glued else ends


def _is_end(line: str, start: int, end: int) -> bool:
    """False for the stops of abbreviations and initials, of `1.` and of dots within a sentence."""
    near = max(start - 1, end - _LONGEST_ABBREVIATION, 0)
    if _ABBREVIATION.search(line, near, end):
        return False
    within = _INITIAL.search(line, near, end) or (line[end].islower() and _OFTEN_WITHIN.search(line, near, end))
    return not within or _STARTS_ORDER.match(line, end) is not None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
