"""Finding the wording of a constraint: a sentence is looked up by its first word, so that most cost next to nothing."""

import re
from collections import defaultdict

from misotune.data.decompose.rule_table import RULES, SURE, UNIT, Rule

_FORM = re.compile(
    rf"\b(?:{UNIT}|keywords?|phrases?|commas?|punctuation|capital\w*|lower ?case|upper ?case|caps|markdown|json|xml|"
    r"html|yaml|csv|latex|tables?|lists?|headings?|headers?|titles?|tone|styles?|voice|person|tense|language|english|"
    r"french|german|spanish|chinese|quotation|quotes?|brackets?|asterisks?|postscript|p\.s|formats?|formatting|"
    r"jargon|emojis?|hashtags?|divider|code ?blocks?|snippet|explanations?|examples?|introduction|conclusion|"
    r"disclaimers?|cliches?|citations?|references|sources|rhym\w+|abbreviations?|contractions?|acronyms?|response|"
    r"answers?|repl(?:y|ies)|output)\b",
    re.IGNORECASE,
)
# Words of politeness and order before the sentence proper.
_LEAD = re.compile(
    r"(?:(?:and|also|but|or|so|then|next|additionally|furthermore|moreover|finally|lastly|in addition|besides|plus|"
    r"note that|note|important|importantly|however|remember|please|pls|plz|kindly|always|explicitly|strictly|ok|okay|"
    r"again|n\.?b\.?|p\.?s\.?)\b[,:!]*\s+(?=\w)|[*_]+)*",
    re.IGNORECASE,
)
# An order with a second one behind it: "Use your own layout and show me the title again" asks for more.
_AND_TASK = re.compile(
    r"\b(?:and|then) (?:then )?(?:show|give|tell|write|create|generate|explain|list|make|describe|provide|ask|find|"
    r"return|summari[sz]e|translate|continue|rewrite|output|print|send|suggest|calculate|analy[sz]e|search|look|compare)\b",
    re.IGNORECASE,
)
_AND_ME = re.compile(r"\b(?:and|then) (?:please )?\w+ me\b", re.IGNORECASE)
# "Reply in the following format" is no constraint without what follows.
_POINTS_ELSEWHERE = re.compile(r"\b(?:the following|(?:as )?follows|below|above)\b(?:\W+\w+){0,3}[.!]*$", re.IGNORECASE)
# So ends a line of pasted text that goes on below.
_UNFINISHED_TEXT = "the a an of to and or that when with in for is are as by from which"
_UNFINISHED = frozenset(_UNFINISHED_TEXT.split())
_POINTER_CHARACTERS = 60
_LONGEST_SUBJECT = 6
_FIRST_WORD = re.compile(r"[\w']+")


_BY_FIRST_WORD: dict[str, list[tuple[Rule, re.Pattern[str]]]] = defaultdict(list)
for _rule in RULES:
    _pattern = re.compile(_rule.pattern, re.IGNORECASE)
    for _word in dict.fromkeys(_rule.first_words.split()):
        _BY_FIRST_WORD[_word].append((_rule, _pattern))

_PRONOUNS_TEXT = "it they this each every all both these those any some at"
_PRONOUNS = frozenset(_PRONOUNS_TEXT.split())
_NO_NOUNS_TEXT = "that which what they this there these those then also both each"
_NO_NOUNS = frozenset(_NO_NOUNS_TEXT.split())
_PRODUCTS_TEXT = (
    "story poem essay email letter article summary paragraph post text song speech code program function script "
    "answer response reply output result title sentence sentences words paragraphs tone style language format "
    "content list table explanation description review report dialogue headline headlines name names character "
    "characters examples example questions points bullets sections section paragraphs lines line letter letters "
    "phrase phrases"
)
_PRODUCTS = frozenset(_PRODUCTS_TEXT.split())


def find_rule(sentence: str, task: str) -> Rule | None:
    """Returns the first rule that a sentence fits, or None.

    Args:
        sentence: One sentence or list item, without its mark.
        task: The sentences before it that ask for something: "The dragon must lose" restricts a story only
            where a dragon was asked for.
    """
    if sentence.endswith("?"):
        return None
    rest = sentence[lead_length(sentence) :]
    first = _FIRST_WORD.match(rest)
    if first is None:
        return None
    for rule, pattern in _BY_FIRST_WORD.get(first.group().lower(), ()):
        match = pattern.match(rest)
        if match is None or (rule.name == "its-part-must" and not _is_about_product(match["subject"], task)):
            continue
        asks_more = (_AND_TASK if rule.confidence < SURE else _AND_ME).search(rest)
        elsewhere = _POINTS_ELSEWHERE.search(rest, max(0, len(rest) - _POINTER_CHARACTERS))
        is_unfinished = rest.rsplit(None, 1)[-1].lower() in _UNFINISHED
        return None if asks_more or elsewhere or is_unfinished else rule
    return None


def lead_length(sentence: str) -> int:
    """Returns how many characters of politeness and connection stand before the sentence proper."""
    match = _LEAD.match(sentence)
    return match.end() if match is not None else 0


def is_sure_rule(rule: Rule | None, sentence: str) -> bool:
    """True when a rule makes a sentence a constraint wherever it stands, at the end of a passage too."""
    return rule is not None and (rule.names_answer or (rule.confidence >= SURE and _FORM.search(sentence) is not None))


def _is_about_product(subject: str, task: str) -> bool:
    words = subject.lower().split()
    if not task or not 0 < len(words) <= _LONGEST_SUBJECT:
        return False
    if words[0] in _PRONOUNS and len(words) <= 2:
        return True
    return words[-1] in _PRODUCTS or (
        len(words[-1]) > 3 and words[-1] not in _NO_NOUNS and words[-1].rstrip("s") in task.lower()
    )
