"""What a response is matched against: words that it must hold, compared as the context-awareness paper compares them.

Source: "On the Loss of Context Awareness in General Instruction Fine-tuning" (arXiv 2411.02688), sections 2.1 and 4.1,
appendix A.3 and its published code; SQuAD's official evaluation script for the normalisation.
"""

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION_TO_SPACES = str.maketrans(dict.fromkeys(string.punctuation, " "))


def normalize_answer(text: str) -> str:
    """Returns the text in lower case without punctuation, articles and surplus white space, as SQuAD's script does.

    >>> normalize_answer("The  10th and 11th centuries, (A.D.)")
    '10th and 11th centuries ad'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def first_sentences(response: str, number: int = 1) -> str:
    """Returns the response up to its first full stop that a space follows, or up to a later one.

    The paper scores one sentence (appendix A.3): its code gives the generation `". "` as its stop.

    >>> first_sentences("In France. That is in Europe. ")
    'In France'
    >>> first_sentences("In St. Louis. That is in Missouri. ", 2)
    'In St. Louis'
    """
    return ". ".join(response.split(". ")[:number])


def contains(response: str, answers: Sequence[str]) -> bool:
    """Tells whether an answer stands anywhere in the response's first sentence, both normalised.

    Anywhere: `2` stands in `12` too, as in the paper's code. An answer with a full stop of its own, `St. Louis`, is
    looked for in one sentence more; the paper's stop makes it one that no response can hold.

    >>> contains("It lasted 12 years", ["2"]), contains("Normandy is in France.", ["the France"])
    (True, True)
    >>> contains("It is St. Louis. Chicago is another.", ["St. Louis"]), contains("It is St. Louis.", ["Louis"])
    (True, False)
    """
    return any(normalize_answer(answer) in _said(response, answer) for answer in answers)


def contains_words(response: str, answers: Sequence[str]) -> bool:
    """Tells whether an answer stands in the response as `contains` has it, as whole words.

    >>> contains_words("It lasted 12 years", ["2"]), contains_words("It lasted 12 years", ["12 years"])
    (False, True)
    """
    return any(f" {normalize_answer(answer)} " in f" {_said(response, answer)} " for answer in answers)


def _said(response: str, answer: str) -> str:
    """Returns the part of the response that an answer is looked for in, normalised."""
    return normalize_answer(first_sentences(response, 1 + answer.count(". ")))


def keywords_found(response: str, keywords: Sequence[str]) -> list[str]:
    """Returns those keywords that are words of the response, whatever their case.

    >>> keywords_found("Eating a sandwich at Dolores-Park.", ["eat", "sandwich", "park"])
    ['sandwich', 'park']
    """
    words = set(response.lower().translate(_PUNCTUATION_TO_SPACES).split())
    return [keyword for keyword in keywords if keyword in words]
