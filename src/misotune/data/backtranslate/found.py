"""What the finders share: the pair they look at, what they return, and limits with slack."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any

from misotune.data.backtranslate.text import Text
from misotune.data.backtranslate.vocabulary import Vocabulary, content_words, stem_of, stems_of

_NUM_KEYWORDS = 8


@dataclass(frozen=True)
class Pair:
    """An instruction and its response.

    Attributes:
        instruction: The last user turn.
        response: The response, whose constraints are looked for.
        vocabulary: Which words are rare, and which belong together, in data like these.
    """

    instruction: Text
    response: Text
    vocabulary: Vocabulary

    @cached_property
    def content(self) -> list[str]:
        """The content words of the response that the instruction has in no form."""
        return [word for word in content_words(self.response) if not self.is_asked(word)]

    @cached_property
    def keywords(self) -> list[str]:
        """Of these, the ones that mark the response's topic, the best first."""
        counts, known = self.response.vocabulary, self.vocabulary
        # A word that is seen once and nowhere else is as likely a slip of the pen.
        words = [word for word in self.content if counts[word] > 1 or word in known.num_with]
        return sorted(words, key=lambda word: (-counts[word] * known.rarity(word), word))[:_NUM_KEYWORDS]

    def is_asked(self, word: str) -> bool:
        """Whether the instruction has a lower-case word, or a form of it."""
        return word in self.instruction.lower or stem_of(word) in self._instruction_stems

    def is_used(self, word: str) -> bool:
        """Whether the response has a lower-case word, or a form of it."""
        return word in self.response.all_words or stem_of(word) in self._response_stems

    @cached_property
    def _instruction_stems(self) -> frozenset[str]:
        return stems_of(self.instruction)

    @cached_property
    def _response_stems(self) -> frozenset[str]:
        return stems_of(self.response)


@dataclass(frozen=True, slots=True)
class Found:
    """A constraint that a response seems to meet; a verifier has the last word.

    Attributes:
        form: Which wordings of the type fit.
        kwargs: The verifier's arguments.
        values: What the wordings say, where it is not the arguments (at most 20 words is "less than 21").
        words: Content words that it names, in lower case; no two constraints of a row name the same.
    """

    form: str = "plain"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    words: Sequence[str] = ()


Finder = Callable[[Pair, Random], Found | None]
"""Returns the constraint of one type that the pair's response meets, or None. It draws from the row's generator."""


def step_of(count: float) -> int:
    """Returns what a person would round a limit near `count` to."""
    for bound, step in ((15, 1), (60, 5), (250, 10), (600, 50), (2500, 100)):
        if count < bound:
            return step
    return 500


def rounded_below(count: int, draw: Random, slack: float = 0.25) -> int:
    """Returns a round number from (1 - slack) * count to count, at least 1.

    >>> rounded_below(163, Random(0))
    120
    """
    wanted = count * (1 - slack * draw.random())
    step = step_of(wanted)
    return max(int(wanted // step) * step, 1)


def rounded_above(count: int, draw: Random, slack: float = 0.25) -> int:
    """Returns a round number from count to (1 + slack) * count, or the next round number after count.

    >>> rounded_above(163, Random(0))
    200
    """
    wanted = count * (1 + slack * draw.random())
    step = step_of(wanted)
    return -int(-wanted // step) * step


def fewer_than(limit: int, name: str, relation: str) -> dict[str, Any]:
    """Returns IFEval's arguments of "at most limit"."""
    return {name: limit + 1, relation: "less than"}


def at_least(limit: int, name: str, relation: str) -> dict[str, Any]:
    """Returns IFEval's arguments of "at least limit"."""
    return {name: limit, relation: "at least"}
