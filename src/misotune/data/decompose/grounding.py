"""Is a model's split of an instruction made of the instruction, all of it, and of nothing else?

A part is grounded when its words stand in the text in the same order and close together, no word is new but
small words and words for "the answer", and no number or negation changed. The parts together cover the text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from misotune.data.decompose.segments import quoted_spans

NOT_IN_TEXT = "a constraint is not in the instruction"
TASK_NOT_IN_TEXT = "the bare instruction is not in the instruction"
NEGATION = "a negation was lost or added"
NO_TASK = "no task is left"
QUOTED = "a constraint comes from quoted text"
TWICE = "a part stands in two places"
LOST = "a part of the instruction is lost"

# Chinese, Japanese and Korean have no spaces between words: each character counts.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+(?:['.\u2019-]\w+)*"
)
_NEGATIONS_TEXT = (
    "not no never without avoid avoiding don't dont cannot can't shouldn't mustn't won't refrain except none "
    "neither nor nothing exclude excluding don\u2019t can\u2019t 不 不要 没"
)
_NEGATIONS = frozenset(_NEGATIONS_TEXT.split())
_FREE_WORDS_TEXT = (
    "a an the and or but also of in on to for with as is are be it its this that these those your you i me my "
    "please should must use using write answer response reply output make sure ensure keep text will have has at "
    "by from so additionally then finally furthermore moreover"
)
_FREE_WORDS = frozenset(_FREE_WORDS_TEXT.split())
_MIN_MATCHED_CONSTRAINT = 0.7
_MIN_MATCHED_TASK = 0.85
_MAX_LOST = 0.1
_MAX_TOGETHER = 1.15


@dataclass(frozen=True, slots=True)
class _Match:
    """Where a part stands in a text: positions of its words there, and the share of its words that have one."""

    positions: tuple[int, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Grounding:
    """A checked split: the constraints in the order of the text, and how much of the wording was kept."""

    constraints: tuple[str, ...]
    confidence: float


def ground(text: str, instruction: str, constraints: Sequence[str]) -> Grounding | str:
    """Returns the constraints in the order of the text, or why the split cannot be trusted.

    >>> ground("Name a river. Be brief, no lists.", "Name a river.", ["no lists", "Be brief"])
    Grounding(constraints=('Be brief', 'no lists'), confidence=1.0)
    >>> ground("Name a river. Be brief, no lists.", "Name a river.", ["Be brief", "lists"])
    'a negation was lost or added'
    """
    found = [(match.group().lower(), match.start()) for match in _WORD.finditer(text)]
    source = [word for word, _ in found]
    task = _words(instruction)
    if not task or _is_new(task, source) or (match := _match(task, source, anywhere=True)).share < _MIN_MATCHED_TASK:
        return TASK_NOT_IN_TEXT if task else NO_TASK
    covered = set(match.positions)
    taken: set[int] = set()
    placed: list[tuple[int, str]] = []
    share = match.share
    for constraint in constraints:
        words = _words(constraint)
        if not words or _is_new(words, source):
            return NOT_IN_TEXT
        match = _match(words, source)
        if match.share < _MIN_MATCHED_CONSTRAINT:
            return NOT_IN_TEXT
        first, last = match.positions[0], match.positions[-1]
        if _negations(words) != _negations(source[first : last + 1]) or _is_negated_before(words, source, first):
            return NEGATION
        if any(start <= found[first][1] and found[last][1] < end for start, end in quoted_spans(text)):
            return QUOTED
        in_task = covered.intersection(match.positions) and _match(words, task).share >= _MIN_MATCHED_CONSTRAINT
        if in_task or len(taken.intersection(match.positions)) > len(match.positions) / 2:
            return TWICE
        taken.update(match.positions)
        covered.update(range(first, last + 1))
        placed.append((first, constraint.strip()))
        share = min(share, match.share)
    return _lost_or_twice(source, task, constraints, covered) or Grounding(
        tuple(constraint for _, constraint in sorted(placed)), round(min(share, 1.0), 2)
    )


def _lost_or_twice(source: list[str], task: list[str], constraints: Sequence[str], covered: set[int]) -> str | None:
    lost = [word for i, word in enumerate(source) if i not in covered and word not in _FREE_WORDS]
    num_content = sum(word not in _FREE_WORDS for word in source)
    if any(word in _NEGATIONS or word.isdigit() for word in lost) or len(lost) > max(1, _MAX_LOST * num_content):
        return LOST
    num_together = len(task) + sum(len(_words(constraint)) for constraint in constraints)
    return TWICE if num_together > _MAX_TOGETHER * len(source) + 3 else None


def _words(text: str) -> list[str]:
    return [match.group().lower() for match in _WORD.finditer(text)]


def _is_new(words: list[str], source: list[str]) -> bool:
    """True when a word that matters is nowhere in the source, not even with another ending."""
    known = set(source)
    stems = {word[:5] for word in known if len(word) > 5}
    return any(
        word not in known and word not in _FREE_WORDS and (any(map(str.isdigit, word)) or word[:5] not in stems)
        for word in words
    )


def _match(words: list[str], source: list[str], anywhere: bool = False) -> _Match:
    """Aligns words with the source, around the longest common run; `anywhere`: over all of it."""
    blocks = [b for b in SequenceMatcher(None, words, source, autojunk=False).get_matching_blocks() if b.size]
    if not blocks:
        return _Match((), 0.0)
    longest = max(blocks, key=lambda block: block.size)
    reach = len(source) if anywhere else len(words) + 3
    near = [b for b in blocks if longest.b - reach <= b.b and b.b + b.size <= longest.b + longest.size + reach]
    positions = tuple(i for b in near for i in range(b.b, b.b + b.size))
    return _Match(positions, len(positions) / len(words))


def _negations(words: Sequence[str]) -> int:
    return sum(word in _NEGATIONS for word in words)


def _is_negated_before(words: list[str], source: list[str], first: int) -> bool:
    """True when a `do not` stands right before what a part without negation copies."""
    return _negations(words) == 0 and _negations(source[max(0, first - 1) : first]) > 0
