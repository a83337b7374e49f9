"""Constraints of style that a response meets: punctuation, figures, person."""

import re
from random import Random

from misotune.data.backtranslate.checks import CHECKS
from misotune.data.backtranslate.found import Finder, Found, Pair
from misotune.data.backtranslate.word_lists import SECOND_PERSON


def _absent(name: str, num_words: int) -> Finder:
    """A finder for something that is missing from a response of at least so many words.

    In a short text it is missing by chance, and the constraint says little.
    """

    def find(pair: Pair, draw: Random) -> Found | None:
        if len(pair.response.spoken) < num_words:
            return None
        return Found() if CHECKS[name](pair.response) else None

    return find


def no_comma(pair: Pair, draw: Random) -> Found | None:
    """No comma, in a response of some length."""
    return Found() if len(pair.response.spoken) >= 10 and "," not in pair.response.text else None


def quotation(pair: Pair, draw: Random) -> Found | None:
    """The whole response stands in double quotation marks."""
    text = pair.response.stripped
    return Found() if len(text) > 4 and text[0] == text[-1] == '"' and text.count('"') == 2 else None


def quoted(pair: Pair, draw: Random) -> Found | None:
    """Something in the response stands in double quotation marks."""
    return Found() if CHECKS["punctuation:quoted"](pair.response) and len(pair.response.spoken) >= 15 else None


def question_marks(pair: Pair, draw: Random) -> Found | None:
    """At least so many questions."""
    count = pair.response.text.count("?")
    if not 1 <= count <= 10 or count == pair.response.stripped.endswith("?") == len(pair.response.sentences):
        return None
    limit = count if count < 4 else count - draw.choice((0, 1))
    return Found("one" if limit == 1 else "several", {"num_marks": limit}, {"n": limit})


def exclamation_marks(pair: Pair, draw: Random) -> Found | None:
    """Exactly so many exclamation marks."""
    count = pair.response.text.count("!")
    if not 1 <= count <= 6 or "!!" in pair.response.text or "!=" in pair.response.text:
        return None
    return Found("one" if count == 1 else "several", {"num_marks": count}, {"n": count})


def end_question(pair: Pair, draw: Random) -> Found | None:
    """The response ends with a question after something else."""
    return Found() if pair.response.stripped.endswith("?") and len(pair.response.sentences) > 1 else None


def numbers(pair: Pair, draw: Random) -> Found | None:
    """At least so many numbers in digits, list numbers not counted."""
    count = len(re.findall(r"\d+(?:[.,]\d+)*", pair.response.text)) - len(pair.response.item_numbers)
    if count < 2:
        return None
    limit = min(count if count < 5 else count - draw.choice((1, 2)), 8)
    return Found(kwargs={"num_numbers": limit}, values={"n": limit})


def second_person(pair: Pair, draw: Random) -> Found | None:
    """The reader is addressed several times."""
    counts = pair.response.vocabulary
    count = sum(counts.get(word, 0) for word in SECOND_PERSON)
    if count < 3:
        return None
    limit = draw.choice((2, 3))
    return Found(kwargs={"num_words": limit}, values={"n": limit})


FINDERS: dict[str, Finder] = {
    "punctuation:no_comma": no_comma,
    "startend:quotation": quotation,
    "punctuation:quoted": quoted,
    "punctuation:question_marks": question_marks,
    "punctuation:exclamation_marks": exclamation_marks,
    "end:question": end_question,
    "digits:none": _absent("digits:none", 40),
    "digits:numbers": numbers,
    "punctuation:no_question_mark": _absent("punctuation:no_question_mark", 60),
    "punctuation:no_exclamation_mark": _absent("punctuation:no_exclamation_mark", 60),
    "punctuation:no_parentheses": _absent("punctuation:no_parentheses", 60),
    "punctuation:no_colon": _absent("punctuation:no_colon", 60),
    "punctuation:no_semicolon": _absent("punctuation:no_semicolon", 120),
    "punctuation:no_dash": _absent("punctuation:no_dash", 60),
    "punctuation:no_double_quotes": _absent("punctuation:no_double_quotes", 60),
    "style:no_first_person": _absent("style:no_first_person", 60),
    "style:second_person": second_person,
    "style:no_second_person": _absent("style:no_second_person", 60),
    "style:no_contractions": _absent("style:no_contractions", 60),
}
