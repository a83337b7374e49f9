"""Splitting a rendered Crab turn into instruction and constraints.

The published set renders its constraints into the user text with a handful of templates and connectors
(method page, section 8). A split is a guess at which of them made the text, and its proof is rendering: a
split counts only when its template gives back the text to the character.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from misotune.data.constraint_text import constraint_share, is_constraint_like, split_sentences
from misotune.data.records import Template

MARKERS = ("- ", "# ", "* ", "> ")
INDENT = "    "

WHEN_ANSWERING = "\n\nWhen answering, please ensure that the following constraints are also met."
_QUERY = "\n\nQuery:\n"


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A template whose own words stand before, between and after instruction and constraints."""

    name: str
    before: str
    between: str
    after: str = ""


# Twenty words of a template of its own are proof enough; the name is for the account.
WRAPPERS = (
    Wrapper(
        "follow-instructions",
        "Please follow the instructions below to generate your response. Additionally, make sure to adhere "
        "to the specific constraints mentioned.\n\nInstructions: ",
        "\n\nAdditional Constraints: ",
    ),
    Wrapper(
        "read-and-follow",
        "Please carefully read and follow the instructions below, along with the additional restrictions "
        "provided, to generate your response.\n\nInstructions: ",
        "\n\nAdditional Restrictions: ",
    ),
    Wrapper(
        "detailed-instructions",
        "Please ensure you read and follow the detailed instructions and additional constraints provided "
        "below to accurately address the query.\n\n- **Instructions**: ",
        "\n- **Additional Constraints**: ",
        "\n\nYour compliance with these guidelines is essential for a valid response.",
    ),
    Wrapper(
        "please-adhere",
        "To generate your response, please adhere to the following:\n1. **Instructions**: ",
        "\n2. **Additional Constraints**: ",
        "\n\nIt's important to follow these guidelines closely to ensure your response is appropriate.",
    ),
    Wrapper(
        "we-invite-you",
        "We invite you to respond by carefully considering the instructions and constraints outlined below. "
        "Your thoughtful adherence to these guidelines will greatly enhance the quality of your response.\n\n"
        "- **Instructions**: ",
        "\n- **Additional Constraints**: ",
        "\n\nThank you for your attention to detail!",
    ),
    Wrapper(
        "hey-there",
        "Hey there! We'd love for you to take a crack at this by following the steps and rules below:\n"
        "- Here's what you need to do: ",
        "\n- Just a couple of things to keep in mind: ",
        "\n\nCan't wait to see what you come up with!",
    ),
)


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
    proven = [split for split in _candidates(text) if split.renders(text)]
    return max(proven, key=lambda split: split.confidence, default=None)  # the first of equals: order of the rules


def _candidates(text: str) -> Iterator[Split]:
    for wrapper in WRAPPERS:
        yield from _wrapped(text, wrapper)
    yield from _when_answering(text)
    yield from _query(text)
    yield from _trailing_block(text)
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
        yield from _bodies(instruction, body, head, _literal(wrapper.after), INDENT, wrapper.name, 1.0)


def _when_answering(text: str) -> Iterator[Split]:
    instruction, found, body = text.rpartition(WHEN_ANSWERING)
    if found:
        yield from _bodies(instruction, body, "{instruction}" + WHEN_ANSWERING, "", "", "when-answering", 1.0)


def _query(text: str) -> Iterator[Split]:
    """Long source texts: the constraints stand first, then `Query:`."""
    body, found, instruction = text.partition(_QUERY)
    if found:
        tail = _QUERY + "{instruction}"
        marked = _marker_of(body) is not None
        sure = 0.95 if marked else 0.4 + 0.5 * constraint_share(body.split("\n"))
        yield from _bodies(instruction, "\n" + body, "", tail, "", "query", sure, lead="")
        yield from _paragraph(instruction, body, "", tail, "query", sure - 0.1)


def _trailing_block(text: str) -> Iterator[Split]:
    """The instruction, a blank line, the constraints on lines of their own."""
    head, found, body = text.rpartition("\n\n")
    if not found:
        return
    marked = _marker_of(body) is not None
    sure = 0.9 if marked else 0.3 + 0.5 * constraint_share(body.split("\n"))
    yield from _bodies(head, "\n" + body, "{instruction}\n", "", "", "bare", sure)


def _leading_block(text: str) -> Iterator[Split]:
    """Long source texts without `Query:`: the constraints, and the instruction from the first other line."""
    lines = text.split("\n")
    marker = _marker_of(text)
    if marker is None:
        num_items = _count_while(lines, is_constraint_like)
        sure = 0.65
    else:
        num_items = _count_while(lines, lambda line: _marker_of(line) == marker)
        sure = 0.85
    num_items = min(num_items, len(lines) - 1)
    if num_items:
        body, instruction = "\n".join(lines[:num_items]), "\n".join(lines[num_items:])
        yield from _bodies(instruction, "\n" + body, "", "\n{instruction}", "", "leading", sure, lead="")


def _trailing_paragraph(text: str) -> Iterator[Split]:
    """The instruction, and the constraints run together on its last line."""
    head, found, body = text.rpartition("\n")
    sentences = split_sentences(body)
    if found and len(sentences) >= 2 and constraint_share(sentences) == 1.0:
        yield from _paragraph(head, body, "{instruction}\n", "", "bare", 0.6)


def _bodies(
    instruction: str, body: str, head: str, tail: str, indent: str, name: str, sure: float, lead: str = "\n"
) -> Iterator[Split]:
    """Splits of `body`, the text where the constraints stand: on lines after a newline, else run together."""
    if not body.startswith("\n" + indent):
        yield from _paragraph(instruction, body, head, tail, name, min(sure, 0.9))
        return
    marker = _marker_of(body[1 + len(indent) :])
    text = head + lead + "{constraints}" + tail
    if marker == "1. ":
        items, item = _numbered_items(body, indent), indent + "{index}. {item}"
    else:
        prefix = indent + (marker or "")
        items, item = body[1 + len(prefix) :].split("\n" + prefix), prefix + "{item}"
    if marker is None and name != "bare" and len(items) == 1 and len(split_sentences(items[0])) > 2:
        # All forms but the bare one can put constraints that run together on a line of their own.
        yield from _paragraph(instruction, body[1:], head + lead, tail, name, min(sure, 0.9))
    rule = f"{name}/{(marker or 'lines').strip()}"
    yield Split(instruction, tuple(items), Template(text, item), min(sure, 0.95) if marker is None else sure, rule)


def _paragraph(instruction: str, body: str, head: str, tail: str, name: str, sure: float) -> Iterator[Split]:
    template = Template(head + "{constraints}" + tail, separator=" ")
    yield Split(instruction, tuple(split_sentences(body)), template, sure, f"{name}/paragraph")


def _numbered_items(body: str, indent: str) -> list[str]:
    """Cuts at `1. `, `2. `, ... in this order, so that a numbered list inside a constraint stays whole."""
    items: list[str] = []
    rest, number = body, 1
    while rest.startswith(f"\n{indent}{number}. "):
        rest = rest[len(f"\n{indent}{number}. ") :]
        number += 1
        end = rest.find(f"\n{indent}{number}. ")
        items.append(rest if end < 0 else rest[:end])
        rest = "" if end < 0 else rest[end:]
    return items


def _marker_of(text: str) -> str | None:
    """The connector that the text opens with: a mark, `1. ` for any number, or None for bare text."""
    if re.match(r"\d+\. ", text):
        return "1. "
    return next((marker for marker in MARKERS if text.startswith(marker)), None)


def _count_while(lines: list[str], holds: Callable[[str], bool]) -> int:
    return next((i for i, line in enumerate(lines) if not holds(line)), len(lines))


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
