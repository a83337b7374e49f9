"""Telling constraints from other text, and running constraints from one another, by the look of the words.

Only where a format leaves no mark: constraints on bare lines, or run together in one paragraph.
"""

import re

_OPENINGS = (
    "add address adhere adopt aim answer apply arrange assume avoid base begin break cap capitalize "
    "choose cite compose conclude confine consider construct convey create deliver demonstrate describe "
    "discuss display divide do don't draw each elaborate emphasize employ enclose end ensure every "
    "exclude explain express finish focus follow format give guarantee highlight hold include incorporate "
    "indicate insert introduce keep leave limit list maintain make mention must never no only opt "
    "organize outline present prioritize produce provide put refer reflect refrain reply respond restrict "
    "separate set should showcase specify start state stay stick strive structure summarize target try "
    "use utilize vary words wrap write your "
)
_FIRST_WORDS = frozenset(_OPENINGS.split())

_SUBJECTS = re.compile(
    r"\b(respon(se|d|ses)|answers?|repl(y|ies)|sentences?|paragraphs?|words?|characters?|letters?|keywords?|phrases?|"
    r"tones?|styles?|formal|informal|objective|neutral|informative|audience|readers?|language|english|spanish|"
    r"vocabulary|jargon|terms?|terminology|bullet(ed)?|numbered|lists?|headings?|titles?|format(ting|ted)?|markdown|"
    r"json|punctuation|commas?|capital(ized)?|lowercase|uppercase|theme|focus|perspective|person|tense|concise|"
    r"structured?|sections?|conclusion|introduction|output|text|instructions?|must|should|avoid)\b",
    re.IGNORECASE,
)

# A sentence ends at . ! ? or with a quotation, whatever that ends in, and the next one opens with a capital.
# Enumerations (`1., 2.`) and `e.g. x` go on in lower case, with a digit or with a comma, and are not cut.
_SENTENCE_END = re.compile(r"((?<=[.!?])['\"\u201d\u2019)\]]*|(?<=[:;,…])['\"\u201d\u2019]) (?=[A-ZÀ-ÞΑ-ΩА-Я])")
_NOT_AN_END = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|Mr|Mrs|Ms|Dr|St|No|Fig|[A-Z])|\.\.)\.$")
_MAX_CONSTRAINT_CHARACTERS = 600


def is_constraint_like(text: str) -> bool:
    """True when a line reads like a constraint on the answer: an order, or about the answer's form.

    >>> is_constraint_like("Keep each sentence under 20 words."), is_constraint_like("Q: Why did John leave?")
    (True, False)
    """
    text = text.strip()
    if not text or len(text) > _MAX_CONSTRAINT_CHARACTERS or text.endswith(("?", ":")):
        return False
    if text.startswith("You are "):  # a role opens an instruction
        return False
    first = re.split(r"[\s,]", text.lower(), maxsplit=1)[0]
    return first in _FIRST_WORDS or _SUBJECTS.search(text) is not None


def constraint_share(lines: list[str]) -> float:
    """Returns the share of lines that read like constraints, from 0 to 1."""
    return sum(map(is_constraint_like, lines)) / len(lines) if lines else 0.0


def split_sentences(paragraph: str) -> list[str]:
    """Returns the sentences of a paragraph; joined by single spaces they are the paragraph again.

    >>> split_sentences("Use numbers (1., 2., etc.) for steps. Say 'Done.' Keep it short.")
    ['Use numbers (1., 2., etc.) for steps.', "Say 'Done.'", 'Keep it short.']
    """
    pieces: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(paragraph):
        if _NOT_AN_END.search(paragraph[start : match.start()]):
            continue
        pieces.append(paragraph[start : match.end(1)])
        start = match.end()
    return [*pieces, paragraph[start:]]
