"""Constraints at the end of a task sentence: "Describe a river in exactly 50 words."."""

import re
from dataclasses import dataclass

from misotune.data.decompose.rule_table import NUMBER, UNIT

_HINT = re.compile(
    rf"{UNIT}|make|making|ensur|sure|do not|don't|without|avoid|using only|only us|tone|style|format|list\b",
    re.IGNORECASE,
)
_NUM = rf"{NUMBER}(?:\s*(?:-|\u2013|to|or)\s*{NUMBER})?"
_SIZE = re.compile(
    rf",?\s+(?P<clause>(?:in|within|(?:using|with)(?= (?:exactly|at |no |up|only|just|less|fewer|"
    rf"more)))\s+(?:(?:exactly|precisely|only|just|at least|at most|no more than|no fewer "
    rf"than|more than|less than|fewer than|up to|under|about|around|approximately|roughly|a (?:maximum|minimum) "
    rf"of)\s+)?"
    rf"{_NUM}\s+(?:\w+\s+)?(?:words|word|sentences?|paragraphs?|lines?|characters|bullet points?|stanzas?|syllables)"
    r"(?:\s+or\s+(?:less|fewer|more))?)(?P<end>[.!]?)$",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"(?:,\s*(?:and|but)?|\s+(?:and|but))\s+(?:please\s+)?(?P<clause>(?:mak(?:e|ing) sure|be sure to|ensur(?:e|ing) "
    r"(?:that|to)|do not(?! (?:know|have|want|understand|need)\b)|"
    r"don't|avoid|without|using only|only using|but not)\b[^,;:.]*(?:,[^,;:.]{0,60}){0,2}?)(?P<end>[.!]?)$",
    re.IGNORECASE,
)
_WITHOUT = re.compile(
    r"\s+(?P<clause>(?:without (?:using|mentioning|including|repeating|explaining|adding|any)|using "
    r"only)\b[^,;:.]*)(?P<end>[.!]?)$",
    re.IGNORECASE,
)
_MANNER = re.compile(
    r",?\s+(?P<clause>(?:in|as|using) (?:an? |the )?(?:[\w-]+ ){0,3}?(?:tone|voice|bullet(?:ed)? (?:list|points)|"
    r"numbered list|"
    r"json format|markdown(?: format)?)|in the style of [^,;:.]{2,60})(?P<end>[.!]?)$",
    re.IGNORECASE,
)
_PATTERNS = (
    (_SIZE, "size-clause", 0.75),
    (_ORDER, "order-clause", 0.75),
    (_WITHOUT, "without-clause", 0.65),
    (_MANNER, "manner-clause", 0.65),
)

# Where the form is the task itself, the clause belongs to it: "Rewrite this in a formal tone."
_FORM_IS_TASK = re.compile(
    r"\b(?:re-?write|convert|change|transform|rephrase|paraphrase|edit|translate|express|put|format|turn|arrange|"
    r"replace|say|sort|split|make (?:it|this)|combine|complete)\b",
    re.IGNORECASE,
)
_MIN_REST_WORDS = 2


@dataclass(frozen=True, slots=True)
class Clause:
    """A constraint at the end of a sentence.

    Attributes:
        start: Where the words to cut begin, the comma or `and` before the clause included.
        body: Where the clause itself begins.
        end: Where it ends, before the full stop that the sentence keeps.
        rule: For the account.
        confidence: From 0 to 1.
    """

    start: int
    body: int
    end: int
    rule: str
    confidence: float


def find_clause(sentence: str) -> Clause | None:
    """Returns the constraint at the end of a task sentence, or None; a question has none.

    >>> clause = find_clause("Describe a river in exactly 50 words.")
    >>> "Describe a river in exactly 50 words."[clause.body : clause.end], clause.rule
    ('in exactly 50 words', 'size-clause')
    """
    if sentence.endswith(("?", ":")) or _HINT.search(sentence) is None:
        return None
    for pattern, rule, confidence in _PATTERNS:
        match = pattern.search(sentence)
        if match is None:
            continue
        rest = sentence[: match.start()]
        if len(rest.split()) < _MIN_REST_WORDS or ":" in rest or rest.endswith(",") or _FORM_IS_TASK.search(rest):
            continue
        return Clause(match.start(), match.start("clause"), match.end("clause"), rule, confidence)
    return None
