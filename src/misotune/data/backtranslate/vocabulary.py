"""Which words are rare in the data, and which belong together: keywords and forbidden words come from here."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import nlargest
from math import log

from misotune.data.backtranslate.text import Text
from misotune.data.backtranslate.word_lists import GENERAL_WORDS

_ENDINGS = (
    *("ations", "ation", "ings", "ing", "ions", "ion", "ments", "ment", "ers", "er"),
    *("ies", "ied", "es", "ed", "ly", "'s", "s", "y", "e"),
)
_MIN_LETTERS, _MAX_LETTERS = 4, 14
_MAX_WORDS_A_TEXT = 40
_MAX_TEXTS_A_WORD = 60
_NUM_NEIGHBOURS = 12
# Chance neighbours have a lift near 1: P(both) / (P(one) P(other)).
_MIN_LIFT = 4.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Word statistics of a sample of responses.

    Attributes:
        num_texts: How many responses were read.
        num_with: In how many of them a content word occurs.
        neighbours: The words that occur with a word in the same responses far more often than by chance.
    """

    num_texts: int = 0
    num_with: Mapping[str, int] = field(default_factory=dict)
    neighbours: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def rarity(self, word: str) -> float:
        """Returns the logarithm of how rare a word is: 0 for one in every text."""
        return log((1 + self.num_texts) / (1 + self.num_with.get(word, 0)))

    def share(self, word: str) -> float:
        """Returns the share of texts that a word is in."""
        return self.num_with.get(word, 0) / max(self.num_texts, 1)


@lru_cache(maxsize=1 << 16)
def is_content_word(word: str) -> bool:
    """Returns whether a lower-case word can be a keyword: plain letters, not short, with a meaning of its own."""
    return (
        _MIN_LETTERS <= len(word) <= _MAX_LETTERS
        and word.isascii()
        and word.isalpha()
        and word not in GENERAL_WORDS
        and not word.endswith("ly")
    )


@lru_cache(maxsize=1 << 16)
def stem_of(word: str) -> str:
    """Returns a lower-case word without its ending: equal for most forms of a word, and fast.

    >>> [stem_of(word) for word in ("learn", "learning", "stories", "story", "planned", "plans", "forest")]
    ['learn', 'learn', 'stor', 'stor', 'plan', 'plan', 'forest']
    """
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def stems_of(text: Text) -> frozenset[str]:
    """Returns the stems of all words of a text."""
    return frozenset(map(stem_of, text.all_words))


def content_words(text: Text) -> list[str]:
    """Returns the different content words of a text, the most frequent first."""
    counts = sorted((-count, word) for word, count in text.vocabulary.items() if is_content_word(word))
    return [word for _, word in counts]


def read_vocabulary(texts: Iterable[Text]) -> Vocabulary:
    """Returns the word statistics of texts."""
    num_with: Counter[str] = Counter()
    words_of: list[list[str]] = []
    for text in texts:
        num_with.update(word for word in text.vocabulary if word.isascii())
        words_of.append(content_words(text)[:_MAX_WORDS_A_TEXT])
    texts_with: dict[str, list[int]] = {}
    for i, words in enumerate(words_of):
        for word in words:
            where = texts_with.setdefault(word, [])
            if len(where) < _MAX_TEXTS_A_WORD:
                where.append(i)
    neighbours: dict[str, tuple[str, ...]] = {}
    for word, where in texts_with.items():
        if len(where) >= 3:
            near = _neighbours(word, where, words_of, num_with)
            if near:
                neighbours[word] = near
    # One occurrence says nothing that the default (never seen) does not say as well.
    return Vocabulary(len(words_of), {w: n for w, n in num_with.items() if n > 1}, neighbours)


def _neighbours(word: str, where: list[int], words_of: list[list[str]], num_with: Counter[str]) -> tuple[str, ...]:
    together = Counter(other for i in where for other in words_of[i])
    scored: list[tuple[float, str]] = []
    for other, count in together.items():
        lift = count * len(words_of) / (len(where) * num_with[other])
        if count >= 3 and lift >= _MIN_LIFT and stem_of(word) != stem_of(other):
            scored.append((count * log(lift), other))
    return tuple(other for _, other in nlargest(_NUM_NEIGHBOURS, scored))
