"""The table of constraint types (`constraint_types.yaml`): where each makes sense, and how it is put into words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from random import Random
from typing import Any

from misotune.data.backtranslate.find_format import FINDERS as FORMAT_FINDERS
from misotune.data.backtranslate.find_length import FINDERS as LENGTH_FINDERS
from misotune.data.backtranslate.find_style import FINDERS as STYLE_FINDERS
from misotune.data.backtranslate.find_words import FINDERS as WORD_FINDERS
from misotune.data.backtranslate.found import Finder, Found
from misotune.data.backtranslate.word_lists import NUMBER_NAMES
from misotune.recipe.yaml_text import parse_yaml

FINDERS: dict[str, Finder] = {**LENGTH_FINDERS, **WORD_FINDERS, **STYLE_FINDERS, **FORMAT_FINDERS}
_ASKED_CHARACTERS = 1000
_TOPIC_WORD = re.compile(r"\d+|[^\W\d_]+")
_TIMES = {1: "once", 2: "twice"}
# A quoted phrase brings its own full stop.
_DOUBLE_STOP = re.compile(r"([.!?,:])\"\.$")


@dataclass(frozen=True, slots=True)
class ConstraintType:
    """One type of constraint.

    Attributes:
        name: IFEval's name, or one of our own (`checks.CHECKS`).
        scope: english, spaced, text, code or all: the responses that it makes sense for.
        family: A row takes at most two of a family.
        groups: A row takes at most one of each group.
        unless: The topics that an instruction must not touch.
        weight: How often it is chosen, against others that fit as many responses.
        wordings: Sentences that state it, by form.
    """

    name: str
    scope: str
    family: str
    groups: tuple[str, ...]
    unless: frozenset[str]
    weight: float
    wordings: Mapping[str, tuple[str, ...]]

    @property
    def find(self) -> Finder:
        """The function that finds this constraint in a response."""
        return FINDERS[self.name]

    def put_into_words(self, found: Found, draw: Random) -> str:
        """Returns a sentence that states the constraint, one of the hand-written ones with its values filled in."""
        return fill(draw.choice(self.wordings[found.form]), found.values, in_letters=draw.random() < 0.5)


def fill(wording: str, values: Mapping[str, Any], *, in_letters: bool) -> str:
    """Returns a wording with its values.

    >>> fill('Use "{word}" at least {times}.', {"word": "rain", "n": 2}, in_letters=True)
    'Use "rain" at least twice.'
    >>> fill("Avoid the words {words}.", {"words": ["rain", "snow", "hail"]}, in_letters=False)
    'Avoid the words "rain", "snow" and "hail".'
    """
    said = dict(values)
    n = values.get("n")
    if isinstance(n, int):
        is_small = n < len(NUMBER_NAMES)
        said["n"] = NUMBER_NAMES[n] if in_letters and is_small else str(n)
        said["n_digits"] = str(n)
        said["times"] = _TIMES.get(n, f"{said['n']} times")
    if "words" in values:
        for name, last in (("words", "and"), ("words_or", "or"), ("words_nor", "nor")):
            said[name] = _quoted_list(values["words"], last)
    text = _DOUBLE_STOP.sub(r'\1"', wording.format_map(said))
    return text[0].upper() + text[1:]


def _quoted_list(words: Sequence[str], last: str) -> str:
    quoted = [f'"{word}"' for word in words]
    return f" {last} ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]


@cache
def constraint_types() -> dict[str, ConstraintType]:
    """Returns the types by name."""
    return {
        name: ConstraintType(
            name=name,
            scope=entry["scope"],
            family=entry["family"],
            groups=tuple(entry["groups"]),
            unless=frozenset(entry.get("unless", ())),
            weight=float(entry.get("weight", 1)),
            wordings={form: tuple(sentences) for form, sentences in entry["wordings"].items()},
        )
        for name, entry in _table()["types"].items()
    }


def topics_of(instruction: str) -> frozenset[str]:
    """Returns the topics that an instruction touches.

    >>> sorted(topics_of("Explain in two sentences why rain falls."))
    ['count', 'length']
    """
    # In front of or behind a long pasted text stands what is asked; the text in between would touch every topic.
    if len(instruction) > 2 * _ASKED_CHARACTERS:
        instruction = f"{instruction[:_ASKED_CHARACTERS]}\n{instruction[-_ASKED_CHARACTERS:]}"
    lower = instruction.lower()
    in_words = (_topics_of_word(word) for word in set(_TOPIC_WORD.findall(lower)))
    return frozenset().union(*in_words, (name for name, pattern in _topics("text").items() if pattern.search(lower)))


# Most words of most instructions are the same few thousand.
@lru_cache(maxsize=1 << 15)
def _topics_of_word(word: str) -> tuple[str, ...]:
    return tuple(name for name, pattern in _topics("words").items() if pattern.fullmatch(word))


@cache
def _topics(kind: str) -> dict[str, re.Pattern[str]]:
    topics = _table()["topics"].items()
    return {name: re.compile(entry[kind], re.DOTALL) for name, entry in topics if kind in entry}


@cache
def _table() -> dict[str, Any]:
    text = (files("misotune.data.backtranslate") / "constraint_types.yaml").read_text(encoding="utf-8")
    return parse_yaml(text).value
