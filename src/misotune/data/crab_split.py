"""Splitting a rendered Crab turn into instruction and constraints.

The published set renders its constraints into the user text with a handful of templates and connectors
(method page, section 8). A split is a guess at which of them made the text, and its proof is rendering: a
split counts only when its template gives back the text to the character.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from misotune.data.constraint_text import constraint_share, is_about_answer, is_constraint_like, split_sentences
from misotune.data.crab_templates import INDENT, MARKERS, QUERY, WHEN_ANSWERING, WRAPPERS, Wrapper
from misotune.data.records import Template

_NUMBER = "1. "
_ANY_NUMBER = re.compile(r"\d+\. ")
_LIST_START = re.compile(r"\n\n(?=1\. |[-#*>] )")


@dataclass(frozen=True, slots=True)
class Split:
    """A proven split: `template.render(instruction, constraints)` is the text.

    Attributes:
        instruction: The bare instruction.
        constraints: At least one.
        template: What rendered the text.
        confidence: From 0 to 1; 1 where the format's own words and marks leave no choice.
        rule: `template/connector`, for the account.
    """

    instruction: str
    constraints: tuple[str, ...]
    template: Template
    confidence: float
    rule: str

    def renders(self, text: str) -> bool:
        """True when the split gives back `text` exactly, with nothing empty in it."""
        parts = (self.instruction, *self.constraints)
        return all(part.strip() for part in parts) and (
            self.template.render(self.instruction, self.constraints) == text
        )


def split_user_text(text: str) -> Split | None:
    r"""Returns the most certain proven split of a rendered user turn; None when no template fits.

    >>> split = split_user_text("Name a fruit.\n\n* Be brief.\n* Use no commas.")
    >>> split.instruction, split.constraints, split.rule
    ('Name a fruit.', ('Be brief.', 'Use no commas.'), 'bare/*')
    """
    for candidates in (_by_words, _by_look):  # where the template's own words are found, nothing else counts
        proven = [split for split in candidates(text) if split.renders(text)]
        if proven:
            return max(proven, key=lambda split: split.confidence)  # the first of equals: order of the rules
    return None


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template puts around the constraints.

    Attributes:
        name: For the account.
        head: The template up to the constraints, `{instruction}` in it or in the tail.
        tail: The template after them.
        indent: Before each constraint on a line of its own.
        sure: The confidence when each constraint has a mark.
    """

    name: str
    head: str
    tail: str
    indent: str = ""
    sure: float = 1.0


def _by_words(text: str) -> Iterator[Split]:
    for wrapper in WRAPPERS:
        yield from _wrapped(text, wrapper)
    yield from _when_answering(text)


def _by_look(text: str) -> Iterator[Split]:
    yield from _query(text)
    yield from _trailing_block(text)
    yield from _trailing_list(text)
    yield from _leading_block(text)
    yield from _trailing_paragraph(text)


def _wrapped(text: str, wrapper: Wrapper) -> Iterator[Split]:
    space = text[: len(text) - len(text.lstrip())]  # one published template opens with a space
    before = space + wrapper.before
    if not (text.startswith(before) and text.endswith(wrapper.after)):
        return
    inner = text[len(before) : len(text) - len(wrapper.after)]
    instruction, found, body = inner.rpartition(wrapper.between)
    if found:
        head = _literal(before) + "{instruction}" + _literal(wrapper.between)
        yield _after_words(_Frame(wrapper.name, head, _literal(wrapper.after), INDENT), instruction, body)


def _when_answering(text: str) -> Iterator[Split]:
    instruction, found, body = text.rpartition(WHEN_ANSWERING)
    if found:
        yield _after_words(_Frame("when-answering", "{instruction}" + WHEN_ANSWERING, ""), instruction, body)


def _after_words(frame: _Frame, instruction: str, body: str) -> Split:
    """A body that follows words of the template: on the next line, or run together on the same one."""
    if not body.startswith("\n" + frame.indent):
        return _in_paragraph(frame, instruction, body, 0.8)
    below = replace(frame, head=frame.head + "\n")
    if not frame.indent and _is_paragraph(body[1:]):  # the form for long source texts begins a line with them
        return _in_paragraph(below, instruction, body[1:], 0.8)
    return _on_lines(below, instruction, body[1:], 0.95)


def _query(text: str) -> Iterator[Split]:
    """Long source texts: the constraints stand first, then `Query:`."""
    body, found, instruction = text.partition(QUERY)
    if not found:
        return
    frame = _Frame("query", "", QUERY + "{instruction}", sure=0.95)
    if _is_paragraph(body):
        yield _in_paragraph(frame, instruction, body, 0.4 + 0.5 * constraint_share(split_sentences(body)))
    else:
        yield _on_lines(frame, instruction, body, 0.4 + 0.5 * constraint_share(body.split("\n")))


def _trailing_block(text: str) -> Iterator[Split]:
    """The instruction, a blank line, the constraints on lines of their own."""
    head, found, body = text.rpartition("\n\n")
    if found:
        frame = _Frame("bare", "{instruction}\n\n", "", sure=0.9)
        lines = body.split("\n")
        yield _on_lines(frame, head, body, (0.25 if len(lines) == 1 else 0.3) + 0.5 * constraint_share(lines))


def _trailing_list(text: str) -> Iterator[Split]:
    """The same where marked constraints hold blank lines."""
    starts = (match.start() for match in _LIST_START.finditer(text))
    at = max(starts, default=-1)
    if at >= 0 and "\n\n" in text[at + 2 :]:
        yield _on_lines(_Frame("bare", "{instruction}\n\n", "", sure=0.55), text[:at], text[at + 2 :], 0.0)


def _leading_block(text: str) -> Iterator[Split]:
    """Long source texts without `Query:`: the constraints, and the instruction from the first other line."""
    lines = text.split("\n")
    frame = _Frame("leading", "", "\n{instruction}", sure=0.85)
    marker = _marker_of(text)
    if marker == _NUMBER:
        num_items = next(i for i in range(len(lines) + 1) if i == len(lines) or not lines[i].startswith(f"{i + 1}. "))
    elif marker is not None:
        num_items = _count_while(lines, lambda line: line.startswith(marker))
    else:
        num_items = _count_while(lines, is_constraint_like)
        if num_items < 2 and _is_paragraph(lines[0]):
            sentences = split_sentences(lines[0])
            if len(lines) > 1 and constraint_share(sentences) == 1.0:
                yield _in_paragraph(frame, "\n".join(lines[1:]), lines[0], 0.7)
            return
        if 1 < num_items < len(lines) and not lines[num_items].strip() and not is_about_answer(lines[num_items - 1]):
            num_items -= 1  # the instruction's own first line, and a blank one below it
    num_items = min(num_items, len(lines) - 1)
    if num_items:
        body, instruction = "\n".join(lines[:num_items]), "\n".join(lines[num_items:])
        # The fewer lines read like constraints, the sooner they are the instruction's own.
        yield _on_lines(frame, instruction, body, (0.55, 0.65, 0.76)[min(num_items, 3) - 1])


def _trailing_paragraph(text: str) -> Iterator[Split]:
    """The instruction, and the constraints run together on its last line."""
    head, found, body = text.rpartition("\n")
    sentences = split_sentences(body)
    if found and len(sentences) >= 2 and constraint_share(sentences) == 1.0:
        # Below a blank line it is rather one constraint of several sentences.
        sure = 0.5 if head.endswith("\n") else 0.78 if _is_paragraph(body) else 0.6
        yield _in_paragraph(_Frame("bare", "{instruction}\n", ""), head, body, sure)


def _on_lines(frame: _Frame, instruction: str, body: str, sure_unmarked: float) -> Split:
    """The split of a body with each constraint on a line of its own, or behind a mark of its own."""
    marker = _marker_of(body.removeprefix(frame.indent))
    prefix = frame.indent + (marker or "")
    if marker == _NUMBER:
        items, item = _numbered_items(body, frame.indent), frame.indent + "{index}. {item}"
    else:
        items, item = body.removeprefix(prefix).split("\n" + prefix), prefix + "{item}"
    template = Template(frame.head + "{constraints}" + frame.tail, item)
    rule = f"{frame.name}/{(marker or 'lines').strip()}"
    return Split(instruction, tuple(items), template, sure_unmarked if marker is None else frame.sure, rule)


def _in_paragraph(frame: _Frame, instruction: str, body: str, sure: float) -> Split:
    template = Template(frame.head + "{constraints}" + frame.tail, separator=" ")
    return Split(instruction, tuple(split_sentences(body)), template, sure, f"{frame.name}/paragraph")


def _is_paragraph(body: str) -> bool:
    """True for one line of so many sentences that they are hardly one constraint."""
    return "\n" not in body and _marker_of(body.lstrip()) is None and len(split_sentences(body)) > 2


def _numbered_items(body: str, indent: str) -> list[str]:
    """Cuts at `1. `, `2. `, ... in this order, so that a numbered list inside a constraint stays whole."""
    items: list[str] = []
    rest, number = "\n" + body, 1
    while rest.startswith(f"\n{indent}{number}. "):
        rest = rest[len(f"\n{indent}{number}. ") :]
        number += 1
        end = rest.find(f"\n{indent}{number}. ")
        items.append(rest if end < 0 else rest[:end])
        rest = "" if end < 0 else rest[end:]
    return items


def _marker_of(text: str) -> str | None:
    """The connector that the text opens with: a mark, `1. ` for any number, or None for bare text."""
    if _ANY_NUMBER.match(text):
        return _NUMBER
    return next((marker for marker in MARKERS if text.startswith(marker)), None)


def _count_while(lines: list[str], holds: Callable[[str], bool]) -> int:
    return next((i for i, line in enumerate(lines) if not holds(line)), len(lines))


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
