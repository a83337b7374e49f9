"""Our own verifiers: constraints that real responses meet and that IFEval has no verifier for.

Each takes the response and the constraint's arguments; its docstring is the strict definition. They are pure, need
no data, and mean the whole response unless they say otherwise.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from misotune import verifiers
from misotune.data.backtranslate.structure_checks import STRUCTURE_CHECKS
from misotune.data.backtranslate.text import Text
from misotune.data.backtranslate.word_lists import CONTRACTED_IS, CONTRACTION_ENDINGS, FIRST_PERSON, SECOND_PERSON

_FIRST_WORD = re.compile(r"\W*([^\W_]+(?:['\u2019-][^\W_]+)*)")
_DOUBLE_QUOTES = re.compile(r"[\"“”„«»]")
_QUOTED = re.compile(r"\"[^\"\n]{2,}\"|“[^”\n]{2,}”")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def is_met(constraint_type: str, kwargs: Mapping[str, Any], response: Text) -> bool:
    r"""Returns whether a response meets a constraint, by IFEval's verifier or by our own of that name.

    >>> is_met("list:numbered", {"num_items": 2}, Text("1. Rain\n2. Snow"))
    True
    """
    own = CHECKS.get(constraint_type)
    if own is not None:
        return own(response, **kwargs)
    return verifiers.is_met(constraint_type, kwargs, response.text)


def first_word(text: str) -> str:
    """Returns the first word without the marks around it; empty when there is none."""
    match = _FIRST_WORD.match(text)
    return match.group(1) if match else ""


def _words_between(response: Text, low: int, high: int) -> bool:
    """Both IFEval's count of words and that by white space are from low to high."""
    return low <= min(response.word_counts) and max(response.word_counts) <= high


def _max_characters(response: Text, num_characters: int) -> bool:
    """The response has at most so many characters, spaces counted, those around it not."""
    return len(response.stripped) <= num_characters


def _paragraphs(response: Text, num_paragraphs: int) -> bool:
    """Exactly so many parts stand between blank lines."""
    return len(response.paragraphs) == num_paragraphs


def _lines(response: Text, num_lines: int) -> bool:
    """Exactly so many lines are not blank."""
    return len(response.lines) == num_lines


def _single_paragraph(response: Text) -> bool:
    """There is text, and no line break in it."""
    return bool(response.stripped) and "\n" not in response.stripped


def _max_sentence_words(response: Text, num_words: int) -> bool:
    """No sentence (see `Text.sentences`) has more words, by white space."""
    return all(len(sentence.split()) <= num_words for sentence in response.sentences)


def _max_paragraph_words(response: Text, num_words: int) -> bool:
    """No part between blank lines has more words, by white space."""
    return all(len(paragraph.split()) <= num_words for paragraph in response.paragraphs)


def _max_word_letters(response: Text, num_letters: int) -> bool:
    """No run of letters is longer."""
    return all(len(word) <= num_letters for word in re.findall(r"[^\W\d_]+", response.text))


def _start_word(response: Text, word: str) -> bool:
    """The first word is this one, in upper or lower case."""
    return first_word(response.stripped).lower() == word.lower()


def _start_phrase(response: Text, phrase: str) -> bool:
    """The response begins with exactly these characters."""
    return response.stripped.startswith(phrase)


def _end_question(response: Text) -> bool:
    """The last character is a question mark."""
    return response.stripped.endswith("?")


def _last_line(response: Text, prefix: str) -> bool:
    """The last line begins with exactly these characters, and something follows them."""
    last = response.lines[-1].strip() if response.lines else ""
    return last.startswith(prefix) and len(last) > len(prefix)


def _no_characters(characters: str) -> Callable[[Text], bool]:
    def check(response: Text) -> bool:
        return bool(response.stripped) and not set(characters) & set(response.text)

    check.__doc__ = f"None of these characters: {characters}"
    return check


def _no_double_quotes(response: Text) -> bool:
    """No double quotation mark of any kind."""
    return _DOUBLE_QUOTES.search(response.text) is None


def _quoted(response: Text) -> bool:
    """Something of two characters or more stands between double quotation marks, on one line."""
    return _QUOTED.search(response.text) is not None


def _question_marks(response: Text, num_marks: int) -> bool:
    """At least so many question marks."""
    return response.text.count("?") >= num_marks


def _exclamation_marks(response: Text, num_marks: int) -> bool:
    """Exactly so many exclamation marks."""
    return response.text.count("!") == num_marks


def _no_digits(response: Text) -> bool:
    """No digit of any script."""
    return not any(char.isdigit() for char in response.text)


def _numbers(response: Text, num_numbers: int) -> bool:
    """At least so many numbers in digits; 3.5 and 1,000 are one each."""
    return len(_NUMBER.findall(response.text)) >= num_numbers


def _no_first_person(response: Text) -> bool:
    """None of I, me, my, we, us, our and their forms, contractions too; in quotations neither."""
    return not FIRST_PERSON & {word.replace("\u2019", "'") for word in response.all_words}


def _second_person(response: Text, num_words: int) -> bool:
    """At least so many words are you, your or a form of these."""
    words = re.findall(r"[a-z]+(?:'[a-z]+)?", response.lower.replace("\u2019", "'"))
    return sum(word in SECOND_PERSON for word in words) >= num_words


def _no_second_person(response: Text) -> bool:
    """None of you, your and their forms."""
    return not SECOND_PERSON & {word.replace("\u2019", "'") for word in response.all_words}


def _no_contractions(response: Text) -> bool:
    """No word ends with n't, 're, 've, 'll, 'd or 'm, and no it's, that's, let's and the like."""
    words = {word.replace("\u2019", "'") for word in response.all_words}
    return not (CONTRACTED_IS & words or any(word.endswith(CONTRACTION_ENDINGS) for word in words))


def _in_order(response: Text, first: str, second: str) -> bool:
    """Both words occur, and the first time of one is before the first time of the other."""
    one, two = (_find_word(response.lower, word) for word in (first, second))
    return 0 <= one < two


def _first_sentence(response: Text, word: str) -> bool:
    """The word stands in the first sentence."""
    return bool(response.sentences) and _find_word(response.sentences[0].lower(), word) >= 0


def _last_sentence(response: Text, word: str) -> bool:
    """The word stands in the last sentence."""
    return bool(response.sentences) and _find_word(response.sentences[-1].lower(), word) >= 0


def _find_word(lower: str, word: str) -> int:
    match = re.search(rf"\b{re.escape(word.lower())}\b", lower)
    return match.start() if match else -1


CHECKS: dict[str, Callable[..., bool]] = {
    **STRUCTURE_CHECKS,
    "length:words_between": _words_between,
    "length:max_characters": _max_characters,
    "length:paragraphs": _paragraphs,
    "length:lines": _lines,
    "length:single_paragraph": _single_paragraph,
    "length:max_sentence_words": _max_sentence_words,
    "length:max_paragraph_words": _max_paragraph_words,
    "length:max_word_letters": _max_word_letters,
    "start:word": _start_word,
    "start:phrase": _start_phrase,
    "end:question": _end_question,
    "end:last_line": _last_line,
    "punctuation:no_question_mark": _no_characters("?\uff1f"),
    "punctuation:no_exclamation_mark": _no_characters("!\uff01"),
    "punctuation:no_parentheses": _no_characters("()\uff08\uff09"),
    "punctuation:no_colon": _no_characters(":\uff1a"),
    "punctuation:no_semicolon": _no_characters(";\uff1b"),
    "punctuation:no_dash": _no_characters("-\u2013—"),
    "punctuation:no_double_quotes": _no_double_quotes,
    "punctuation:quoted": _quoted,
    "punctuation:question_marks": _question_marks,
    "punctuation:exclamation_marks": _exclamation_marks,
    "digits:none": _no_digits,
    "digits:numbers": _numbers,
    "style:no_first_person": _no_first_person,
    "style:second_person": _second_person,
    "style:no_second_person": _no_second_person,
    "style:no_contractions": _no_contractions,
    "keyword:in_order": _in_order,
    "keyword:first_sentence": _first_sentence,
    "keyword:last_sentence": _last_sentence,
}
