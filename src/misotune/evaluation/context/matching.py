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


def first_sentence(response: str) -> str:
    """Returns the response up to its first full stop that a space follows.

    The paper scores this much (appendix A.3): its code gives the generation `". "` as its stop.

    >>> first_sentence("In France. That is in Europe. ")
    'In France'
    """
    return response.partition(". ")[0]


def contains(response: str, answers: Sequence[str]) -> bool:
    """Tells whether an answer stands anywhere in the response's first sentence, both normalised.

    Anywhere: `2` stands in `12` too, as in the paper's code.

    >>> contains("It lasted 12 years", ["2"]), contains("Normandy is in France.", ["the France"])
    (True, True)
    """
    text = normalize_answer(first_sentence(response))
    return any(normalize_answer(answer) in text for answer in answers)


def contains_words(response: str, answers: Sequence[str]) -> bool:
    """Tells whether an answer stands in the response's first sentence as whole words, both normalised.

    >>> contains_words("It lasted 12 years", ["2"]), contains_words("It lasted 12 years", ["12 years"])
    (False, True)
    """
    text = normalize_answer(first_sentence(response))
    return any(f" {normalize_answer(answer)} " in f" {text} " for answer in answers)


def keywords_found(response: str, keywords: Sequence[str]) -> list[str]:
    """Returns those keywords that are words of the response, whatever their case.

    >>> keywords_found("Eating a sandwich at Dolores-Park.", ["eat", "sandwich", "park"])
    ['sandwich', 'park']
    """
    words = set(response.lower().translate(_PUNCTUATION_TO_SPACES).split())
    return [keyword for keyword in keywords if keyword in words]
