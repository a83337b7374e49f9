"""Telling constraints from other text, and running constraints from one another, by the look of the words.

Only where a format leaves no mark: constraints on bare lines, or run together in one paragraph.
"""

import re

_OPENINGS = (
    "add address adhere adopt aim answer apply arrange assume avoid base be begin break cap capitalize "
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

_ANSWER = re.compile(r"\b(?:respon(?:se|ses|d)|answers?|repl(?:y|ies)|output)\b", re.IGNORECASE)

# What opens the text of a task, which is about a thing to make or a question, and not about the answer's form.
_POLITE = (
    r"(?:please,? |kindly |(?:can|could|would|will) you |i (?:want|need|would like) you to |"
    r"i(?:'d| would) like to |help me (?:to )?|let's )*"
)
_MAKES = (
    r"(?:write|create|compose|generate|design|develop|make|build|draft|construct|produce|come up with|brainstorm|"
    r"invent|tell|suggest|propose|prepare|plan|give|name|list(?! the)|describe|provide)"
)
_A_THING = r"(?:me |us |down )?(?:an?|the|my|some|any|several|one|two|three|four|five|six|ten|\d+|python|code|out)\b"
_OF_THE_ANSWER = (
    r"(?!(?: [\w-]+){0,2} (?:respon|answer|repl|output|word|sentence|paragraph|section|bullet|title|heading|keyword|"
    r"letter|asterisk|placeholder|overview|explanation|clear|format))"
)
_ASKS = (
    r"(?:summari[sz]e|translate|re(?:write|phrase|word)|paraphrase|classify|categori[sz]e|identify|find|calculate|"
    r"compute|determine|solve|compare|analy[sz]e|evaluate|convert|transform|edit|explain|predict|sort|imagine|suppose|"
    r"assume|act as|pretend|read the|look at|take the|fill in|given|based on|considering|if|when|what|why|how|who|"
    r"whom|which|where|is|are|did|was|were|import|from|def|class)\b"
)
_TASK = (
    r"you (?:are|will|have|were|need)\b|in this task|(?:this|the) (?:task|article|input)\b|your task|task:|"
    r"(?:we|i) (?:ask|would like|want)\b|input\s*:|passage|context|question|q:|text:|article|here (?:is|are|'s)|below|"
    r"i |i'm |hi\b|hello\b|there (?:is|are|was|were) (?!should)"
)
_OPENS_A_TASK = re.compile(rf"\W{{0,3}}{_POLITE}(?:{_MAKES} {_A_THING}{_OF_THE_ANSWER}|{_ASKS}|{_TASK})", re.IGNORECASE)
_REQUEST = re.compile(
    r"(?:could|can|would|will) you (?:please )?(?:make sure|ensure|keep|avoid|include|use)\b", re.IGNORECASE
)

# A sentence ends at . ! ? or with a quotation, whatever that ends in, and the next one opens with a capital.
# Enumerations (`1., 2.`) and `e.g. x` go on in lower case, with a digit or with a comma, and are not cut.
_SENTENCE_END = re.compile(
    r"((?<=[.!?])['\"\u201d\u2019)\]]*\.? *|(?<=[:;,\u2026])['\"\u201d\u2019]\.? *) (?=[A-ZÀ-ÞΑ-ΩА-Я])"
)
_NOT_AN_END = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|Mr|Mrs|Ms|Dr|St|No|Fig|[A-Z])|\.\.)\.$")
_MAX_CONSTRAINT_CHARACTERS = 300
_MAX_CONSTRAINT_SENTENCES = 3


def is_constraint_like(text: str) -> bool:
    """True when a line reads like a constraint on the answer: an order, or about the answer's form.

    >>> is_constraint_like("Keep each sentence under 20 words."), is_constraint_like("Q: Why did John leave?")
    (True, False)
    >>> is_constraint_like("Write in a formal tone."), is_constraint_like("Write a story about an owl.")
    (True, False)
    """
    text = text.strip()
    if _REQUEST.match(text):
        return True
    if not text or len(text) > _MAX_CONSTRAINT_CHARACTERS or text.endswith(":") or _OPENS_A_TASK.match(text):
        return False
    if _first_word(text) not in _FIRST_WORDS and (text.endswith("?") or _SUBJECTS.search(text) is None):
        return False
    return len(split_sentences(text)) <= _MAX_CONSTRAINT_SENTENCES


def is_about_answer(text: str) -> bool:
    """True when a line opens with an order that constraints open with, or names the answer.

    >>> is_about_answer("Keep it short."), is_about_answer("Pick the best idea from the paragraph.")
    (True, False)
    """
    return _first_word(text.strip()) in _FIRST_WORDS or _ANSWER.search(text) is not None


def _first_word(text: str) -> str:
    return re.split(r"[\s,]", text.lower(), maxsplit=1)[0]


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
        is_quoted = match.group(1).strip() != ""
        if not is_quoted and _NOT_AN_END.search(paragraph, start, match.start()):
            continue
        pieces.append(paragraph[start : match.end(1)])
        start = match.end()
    return [*pieces, paragraph[start:]]
