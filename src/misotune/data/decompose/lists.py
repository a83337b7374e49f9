"""Lists in an instruction: constraints one by one, one constraint with its parts, or content."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from misotune.data.decompose.segments import Segment
from misotune.data.decompose.task import opens_task
from misotune.data.decompose.wording import find_rule, is_sure_rule

_RULES_HEAD = re.compile(
    r"\b(?:requirements?|constraints?|rules?|guidelines?|conditions?|restrictions?|criteria|keep in mind|make sure|"
    r"ensure|must|should|needs? to|remember|specifications?|specs|do not|don'?ts|notes?|instructions)\b",
    re.IGNORECASE,
)
# "Your answer must contain one of the following phrases:" is one constraint with its parts.
_WHOLE_HEAD = re.compile(
    r"\b(?:(?:one|all|each|any|some) of (?:the|these)|(?:following|this|these|such) (?:\w+ ){0,3}(?:phrases?|words?|"
    r"keywords?|format|"
    r"structure|template|style|order|options|bullet points?|headings?|sections?)|such as|like this|i\.e\.|"
    r"choose from|format)\b",
    re.IGNORECASE,
)
_RULES = (
    r"(?:requirements?|constraints?|rules?|guidelines?|conditions?|restrictions?|criteria|specifications?|instructions|"
    r"points)"
)
# What introduces the rules behind a task: "... that meets the following requirements:".
_HEAD_TAIL = re.compile(
    r",?\s+(?:and )?(?:with|that (?:meets?|follows?|satisf\w+|fulfil\w+|has)|which (?:meets?|follows?)|(?:by |while "
    r")?following|using|"
    r"according to|based on|under|considering|given|keeping in mind|adhering to|subject to|in accordance with|"
    r"(?:please )?(?:follow|ensure|make sure|keep in mind)(?: that)?)\s+(?:all )?(?:of )?(?:the |these |this |my "
    r")?(?:following |below )?"
    rf"(?:\w+ ){{0,2}}?{_RULES}(?: below| in mind| are met)?\s*:\**$",
    re.IGNORECASE,
)
_ONLY_HEAD = re.compile(
    r"(?:\W|please|also|you (?:must|should|need to|have to)|and|here are|the)*\s*(?:follow|consider|note|adhere|keep|"
    r"ensure|make sure|"
    r"observe|respect|meet|include|use|remember|stick|do not|don't|avoid|your (?:response|answer|reply|output))\b",
    re.IGNORECASE,
)
_COLONS = (":", ":**", ":*")
_MIN_SHARE_UNDER_HEAD = 0.5
_MIN_SHARE_ALONE = 0.8


@dataclass(frozen=True, slots=True)
class ItemList:
    """A run of list items among the segments of a text.

    Attributes:
        first: Index of the first item's segment.
        last: Index of the last item's last segment.
        head: Index of the sentence before it that ends with a colon, if any.
        spans: First and last segment of each item.
    """

    first: int
    last: int
    head: int | None
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a list is: constraints one by one or, `is_whole`, one constraint together with its head.

    Attributes:
        rule: For the account.
        confidence: From 0 to 1.
        is_whole: Head and items are one constraint.
        num_kept: Characters of the head that stay: "Write an article" of "Write an article with these rules:".
    """

    rule: str
    confidence: float
    is_whole: bool = False
    num_kept: int = 0


def lists_of(text: str, segments: Sequence[Segment]) -> Iterator[ItemList]:
    """Yields the runs of at least two list items."""
    i = 0
    while i < len(segments):
        has_head = i > 0 and text[: segments[i - 1].end].endswith(_COLONS)
        if segments[i].kind == "item":
            spans = _marked_items(text, segments, i)
        elif has_head and segments[i].kind == "sentence" and segments[i].line == segments[i - 1].line + 1:
            spans = _bare_lines(segments, i)
        else:
            spans = []
        if len(spans) >= 2:
            yield ItemList(i, spans[-1][1], i - 1 if has_head else None, tuple(spans))
        i = spans[-1][1] + 1 if spans else i + 1


def _marked_items(text: str, segments: Sequence[Segment], first: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for i in range(first, len(segments)):
        if segments[i].kind == "sentence":
            break
        if segments[i].kind == "item":
            spans.append((i, i))
        elif is_sure(text, segments[i]):  # orders after the last item, on its line
            break
        else:
            spans[-1] = (spans[-1][0], i)
    return spans


def _bare_lines(segments: Sequence[Segment], first: int) -> list[tuple[int, int]]:
    """Lines without marks right below a head, up to a blank line."""
    spans: list[tuple[int, int]] = []
    for i in range(first, len(segments)):
        if segments[i].kind != "sentence" or segments[i].line > segments[i - 1].line + 1:
            break
        if segments[i].line == segments[i - 1].line:
            spans[-1] = (spans[-1][0], i)
        else:
            spans.append((i, i))
    return spans


def judge_list(text: str, segments: Sequence[Segment], items: ItemList) -> Verdict | None:
    """Returns what a list is; None: content of the task."""
    head = segments[items.head] if items.head is not None else None
    head_text = text[head.body : head.end] if head is not None else ""
    rule_head = find_rule(head_text, text[: head.start]) if head is not None else None
    if any(segments[i].is_material for i, _ in items.spans) and rule_head is None and not _RULES_HEAD.search(head_text):
        return None
    bodies = [text[segments[i].body : segments[j].end] for i, j in items.spans]
    share = sum(find_rule(body, text[: segments[items.first].start]) is not None for body in bodies) / len(bodies)
    is_marked = segments[items.first].kind == "item"
    if head is None:
        before = text[: segments[items.first].start].strip()
        return Verdict("list", 0.75) if share >= _MIN_SHARE_ALONE and before else None
    if rule_head is not None and _WHOLE_HEAD.search(head_text) and share < _MIN_SHARE_UNDER_HEAD:
        return Verdict(f"{rule_head.name}-list", min(rule_head.confidence, 0.85), is_whole=True)
    if not (is_marked and _RULES_HEAD.search(head_text) and share >= _MIN_SHARE_UNDER_HEAD):
        return None
    tail = _HEAD_TAIL.search(head_text)
    if tail is None and opens_task(head_text) and not _ONLY_HEAD.match(head_text):
        return None  # the task itself stands in the head, in words that cannot be cut
    return Verdict("list-under-head", 0.6 + 0.3 * share, num_kept=tail.start() if tail is not None else 0)


def is_sure(text: str, segment: Segment) -> bool:
    """True when a segment is a constraint wherever it stands, at the end of a passage too."""
    sentence = text[segment.body : segment.end]
    return is_sure_rule(find_rule(sentence, text[: segment.body]), sentence)
