"""Cutting constraints out of a text, so that what stays reads as if they had never stood there."""

import itertools
import re
from dataclasses import dataclass, replace

from misotune.data.decompose.segments import Segment
from misotune.data.decompose.task import begins_with_reference

# Sentences that go on with the constraint before them.
_GOES_ON = re.compile(
    r"(?:for (?:example|instance)|e\.g\.|i\.e\.|such as|that is\b|otherwise\b|if not\b|no other|nothing else|nothing "
    r"more|"
    r"\(|mark the beginning|the request you|each (?:one|of them)\b|this (?:means|includes)\b|"
    r"(?:responses|paragraphs|sections|sentences|bullet points|titles|headings)\b[^?]*\b(?:is|are|should|must)\b)",
    re.IGNORECASE,
)
_CONNECTIVE = re.compile(
    r"(?:(?:and|also|but|then|so|next|additionally|furthermore|moreover|finally|lastly|in addition|besides|"
    r"plus)\b[,:]?\s+)+(?=\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A constraint in a text.

    Attributes:
        start: Where the text to cut begins.
        body: Where the constraint's own words begin.
        end: Where both end.
        text: The constraint, as the text has it, without its mark and connective.
        rule: What found it.
        confidence: From 0 to 1.
    """

    start: int
    body: int
    end: int
    text: str
    rule: str
    confidence: float


def found_at(text: str, start: int, body: int, end: int, rule: str, confidence: float) -> Found:
    """Returns the constraint that a text has at `body`; it is cut from `start`."""
    return Found(start, body, end, _wording(text[body:end]), rule, confidence)


def _wording(text: str) -> str:
    """A constraint as it stands alone: no `Also,` before it, and a capital."""
    words = text.strip().rstrip(",;")
    match = _CONNECTIVE.match(words)
    words = words[match.end() :] if match is not None else words
    return words[:1].upper() + words[1:]


def with_continuations(text: str, segments: list[Segment], found: list[Found]) -> list[Found]:
    """Returns the constraints, each joined with the sentences that go on with it: examples, exceptions."""
    starts = {one.start for one in found}
    by_end = {one.end: i for i, one in enumerate(found)}
    for before, segment in itertools.pairwise(segments):
        i = by_end.get(before.end)
        if i is None or segment.start in starts or segment.kind == "item" or segment.line != before.line:
            continue
        if _GOES_ON.match(text, segment.body):
            found[i] = replace(found[i], end=segment.end, text=_wording(text[found[i].body : segment.end]))
            by_end[segment.end] = i
    return found


def without(text: str, found: list[Found]) -> str:
    r"""Returns the text without its constraints; where one was cut out, the larger of the gaps around it stays.

    >>> text = "Name a river. Be brief.\n\nIn Asia."
    >>> without(text, [found_at(text, 14, 14, 23, "be-so", 0.7)])
    'Name a river.\n\nIn Asia.'
    """
    rest = text[: found[0].start] if found else text
    for i, one in enumerate(found):
        after = text[one.end : found[i + 1].start] if i + 1 < len(found) else text[one.end :]
        rest = _joined(rest, after)
    return rest.strip()


def _joined(left: str, right: str) -> str:
    start, tail = left.rstrip(), right.lstrip()
    if not start or not tail:
        return left + right
    gaps = left[len(start) :], right[: len(right) - len(tail)]
    num_newlines = max(gap.count("\n") for gap in gaps)
    if num_newlines:
        return start + "\n" * num_newlines + gaps[1].rpartition("\n")[2] + tail
    return start + tail if tail[0] in ".!?" else f"{start} {tail}"


def refers_to_what_was_cut(text: str, segments: list[Segment], found: list[Found]) -> bool:
    """True when a sentence that stays points back at a constraint right before it."""
    ends = {one.end for one in found}
    starts = {one.start for one in found}
    return any(
        before.end in ends
        and segment.start not in starts
        and segment.line == before.line
        and begins_with_reference(text[segment.body : segment.end])
        for before, segment in itertools.pairwise(segments)
    )
