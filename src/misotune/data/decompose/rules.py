"""Decomposition by rules: the constraints of an instruction that lists none are found by their wording.

Sentence by sentence and item by item; what is found is cut out, and the rest must still state a task. Where
that is in doubt the record keeps its one input, with the reason.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from misotune.data.decompose.clauses import find_clause
from misotune.data.decompose.cutting import Found, found_at, refers_to_what_was_cut, with_continuations, without
from misotune.data.decompose.lists import ItemList, judge_list, lists_of
from misotune.data.decompose.rule_table import SURE, Rule
from misotune.data.decompose.segments import Segment, segments_of
from misotune.data.decompose.task import is_english, opens_task, states_task
from misotune.data.decompose.wording import find_rule, is_sure_rule
from misotune.data.records import PLAIN, Record, Template

MIN_CONFIDENCE = 0.5
MAX_CHARACTERS = 20_000
NOT_FOUND = "no constraints found by rules"
NOT_ENGLISH = "no English prose, and the rules know English only"
TOO_LONG = f"longer than {MAX_CHARACTERS:,} characters, not decomposed by rules"
UNSURE = "constraints found by rules, below the confidence asked for"
NO_TASK = "constraints found by rules, but no task would be left"

IN_PARAGRAPH = Template("{instruction} {constraints}", separator=" ")

_LONG_LINE = 500
_LONG_TEXT = 1500
_ORDERS_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Decomposition:
    """A text, taken apart.

    Attributes:
        instruction: What remains; the whole text where nothing was found.
        found: The constraints, in order.
        confidence: That of the least certain constraint, less where the rest refers to what was cut.
        why_not: Why the text should stay whole; None: it can be taken apart.
    """

    instruction: str
    found: tuple[Found, ...]
    confidence: float
    why_not: str | None = None


def decompose_by_rules(record: Record, min_confidence: float = MIN_CONFIDENCE) -> Record:
    """Returns the record with its constraints apart; unchanged but for the reason where there is no sure split.

    Chats that train on several turns, and records that have constraints already, are left as they are.

    Args:
        record: A record of any source.
        min_confidence: From 0 to 1; a split below keeps one input.
    """
    if record.constraints or record.history_loss:
        return record
    text = record.full_text or record.instruction
    parts = decompose_text(text)
    why_not = parts.why_not or (UNSURE if parts.confidence < min_confidence else None)
    if why_not is not None:
        return replace(record, one_input=why_not)
    weakest = min(parts.found, key=lambda found: found.confidence)
    return replace(
        record,
        instruction=parts.instruction,
        constraints=tuple(found.text for found in parts.found),
        full_text=text,
        template=template_for(text, parts.instruction),
        confidence=min(record.confidence, parts.confidence),
        rule=f"rules/{weakest.rule}",
        one_input=None,
    )


def template_for(text: str, instruction: str) -> Template:
    """Returns how the bare instruction and a constraint are joined: in one paragraph where the text was one."""
    is_paragraph = "\n" not in text.strip() and instruction.endswith((".", "!", "?", '"', "'", ")"))
    return IN_PARAGRAPH if is_paragraph else PLAIN


def decompose_text(text: str) -> Decomposition:
    r"""Returns the instruction and constraints of a text.

    >>> parts = decompose_text("Write a poem about rain. Use no rhymes, and do not mention clouds.\nIn two stanzas.")
    >>> parts = decompose_text("Name a river. Your answer must be in lower case. Also, do not use commas.")
    >>> parts.instruction, [(found.text, found.rule) for found in parts.found]
    ('Name a river.', [('Your answer must be in lower case.', 'answer-must'), ('Do not use commas.', 'prohibition')])
    """
    if len(text) > MAX_CHARACTERS:
        return Decomposition(text, (), 0.0, TOO_LONG)
    segments = segments_of(text)
    found = sorted(_constraints(text, segments), key=lambda one: one.start)
    if not found:
        return Decomposition(text, (), 0.0, NOT_FOUND if is_english(text) else NOT_ENGLISH)
    found = with_continuations(text, segments, found)
    instruction = without(text, found)
    if not states_task(instruction) and found[0].body == segments[0].body:
        found = found[1:]  # nothing else does: the first sentence is the task, however it is worded
        instruction = without(text, found)
    if not found:
        return Decomposition(text, (), 0.0, NOT_FOUND)
    confidence = min(one.confidence for one in found)
    if not states_task(instruction):
        return Decomposition(text, tuple(found), confidence, NO_TASK)
    if refers_to_what_was_cut(text, segments, found):
        confidence *= 0.6
    return Decomposition(instruction, tuple(found), confidence, None if is_english(text) else NOT_ENGLISH)


def _constraints(text: str, segments: list[Segment]) -> Iterator[Found]:
    in_lists: set[int] = set()
    for items in lists_of(text, segments):
        in_lists.update(range(items.first, items.last + 1))
        yield from _of_list(text, segments, items, in_lists)
    free = [segment for i, segment in enumerate(segments) if i not in in_lists]
    rules, task = _rules_of(text, free)
    passage = _passages(text, free, rules)
    has_task = False
    for segment in free:
        rule = rules.get(segment.start)
        sentence = text[segment.body : segment.end]
        if sentence.endswith(":") or segment.start in passage:
            has_task = True
        elif rule is not None and (has_task or rule.confidence >= SURE or rule.names_answer):
            yield found_at(text, segment.start, segment.body, segment.end, rule.name, rule.confidence)
        else:
            has_task = True
            clause = find_clause(sentence) if segment.start in task else None
            if clause is not None:
                at = segment.body
                yield found_at(
                    text, at + clause.start, at + clause.body, at + clause.end, clause.rule, clause.confidence
                )
    yield from _after_material(text, free, rules, passage)


def _rules_of(text: str, free: list[Segment]) -> tuple[dict[int, Rule], set[int]]:
    """Returns the rule that each sentence fits, by its start, and the starts of those that ask for something."""
    rules: dict[int, Rule] = {}
    tasks: set[int] = set()
    asked = ""
    broken = _broken_lines(text, free)
    for segment in free:
        sentence = text[segment.body : segment.end]
        rule = None if segment.start in broken else find_rule(sentence, asked)
        if rule is not None:
            rules[segment.start] = rule
        elif not segment.is_material and opens_task(sentence):
            tasks.add(segment.start)
            asked += " " + sentence
    return rules, tasks


def _broken_lines(text: str, free: list[Segment]) -> set[int]:
    """Starts of the sentences that run over the end of a line, as in pasted text."""
    starts: set[int] = set()
    for before, segment in itertools.pairwise(free):
        if segment.line == before.line + 1 and text[segment.body].islower() and text[before.end - 1].isalnum():
            starts.update((before.start, segment.start))
    return starts


def _of_list(text: str, segments: list[Segment], items: ItemList, taken: set[int]) -> Iterator[Found]:
    """The constraints of a list: each item, or head and items as one, or none where the list is content."""
    verdict = judge_list(text, segments, items)
    if verdict is None:
        return
    if items.head is not None:
        taken.add(items.head)
    first = segments[items.head if items.head is not None else items.first]
    if verdict.is_whole:
        yield found_at(text, first.start, first.body, segments[items.last].end, verdict.rule, verdict.confidence)
        return
    start = first.start + verdict.num_kept
    for begin, end in items.spans:
        body, last = segments[begin].body, segments[end].end
        yield found_at(text, start, body, last, verdict.rule, verdict.confidence)
        start = last


def _after_material(text: str, free: list[Segment], rules: dict[int, Rule], passage: set[int]) -> Iterator[Found]:
    """Constraints that follow a passage: the last sentences of the text, while each reads like one."""
    run: list[Found] = []
    num_sure = 0
    for segment in reversed(free):
        rule = rules.get(segment.start)
        if rule is None:
            break
        run.append(found_at(text, segment.start, segment.body, segment.end, rule.name, rule.confidence))
        if is_sure_rule(rule, text[segment.body : segment.end]):
            num_sure = len(run)  # the run begins with a sure one; unsure ones may stand behind it
    yield from (one for one in run[:num_sure] if one.start in passage)


def _passages(text: str, free: list[Segment], rules: dict[int, Rule]) -> set[int]:
    """Starts of the sentences that are probably material.

    Marked as such; on a long line in which few sentences are orders; and in a long text all but the first and
    the last paragraph, since people put their orders before and behind what they paste.
    """
    by_line: dict[int, list[Segment]] = {}
    for segment in free:
        by_line.setdefault(segment.line, []).append(segment)
    first, last = text.find("\n\n"), text.rfind("\n\n")
    is_long = len(text) > _LONG_TEXT
    starts: set[int] = set()
    for those in by_line.values():
        is_prose = those[-1].end - those[0].start > _LONG_LINE and sum(
            segment.start in rules for segment in those
        ) < _ORDERS_SHARE * len(those)
        is_inside = is_long and first < those[0].start < last
        starts.update(segment.start for segment in those if segment.is_material or is_prose or is_inside)
    return starts
