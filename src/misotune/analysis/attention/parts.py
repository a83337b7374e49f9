"""Which part of the conversation each token belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from misotune.analysis.attention.prompts import ParsedPrompt
from misotune.errors import LayoutError, UsageError
from misotune.layout import ChatTemplate, EncodedSample
from misotune.layout.template import Message

PARTS = ("first token", "system", "instruction", "constraints", "rest", "response")
"""What attention can go to; a row's constraints are also told apart.

The first token stands alone: models send there what they send nowhere (the attention sink), whatever it is.
"""
FIRST, SYSTEM, INSTRUCTION, CONSTRAINTS, REST, RESPONSE = range(len(PARTS))

# Stands for a message's text, to see where the template puts it.
_MARK = "\ue000"
_OTHER_MARK = "\ue001"


@dataclass(frozen=True, slots=True)
class PartedRow:
    """A prompt and a response as tokens, each with its part.

    Attributes:
        prompt: Where the row came from.
        encoded: One input, and the generation prompt with the response.
        parts: For each token of both an index of `PARTS`; constraint i is `len(PARTS) + i`, and no token has
            CONSTRAINTS.
        response: The response as text, whole.
    """

    prompt: ParsedPrompt
    encoded: EncodedSample
    parts: NDArray[np.int64]
    response: str

    @property
    def num_parts(self) -> int:
        """Parts, each constraint counted."""
        return len(PARTS) + len(self.prompt.constraints)


def part_row(prompt: ParsedPrompt, encoded: EncodedSample, response: str, template: ChatTemplate) -> PartedRow:
    """Returns the row with each token's part.

    A token belongs where its last character that is no white space stands.

    Args:
        prompt: The prompt's parts by characters.
        encoded: The same prompt, and a response behind its generation prompt.
        response: That response's text.
        template: The model's.

    Raises:
        LayoutError: The template does not show where it puts the texts.
        UsageError: The tokenizer cannot tell the characters of its tokens.
    """
    text = template.render(prompt.messages, add_generation_prompt=True)
    by_character = _parts_of_text(prompt, text, template)
    if not template.tokenizer.is_fast:
        raise UsageError(
            "the model's tokenizer is a slow one, which cannot tell where its tokens stand; "
            "give the model's folder a tokenizer.json"
        )
    tokens = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    num_opening = int(np.argmax(encoded.is_trained))
    if tokens["input_ids"] != [*encoded.inputs[0].tolist(), *encoded.output[:num_opening].tolist()]:
        raise LayoutError("the prompt's tokens are not those of its text")
    parts = np.full(len(encoded.inputs[0]) + len(encoded.output), RESPONSE, dtype=np.int64)
    parts[: len(tokens["input_ids"])] = [_part_at(by_character, text, *x) for x in tokens["offset_mapping"]]
    parts[0] = FIRST
    return PartedRow(prompt, encoded, parts, response)


def _part_at(by_character: NDArray[np.int64], text: str, start: int, stop: int) -> int:
    if start >= stop:  # a mark that stands for no character
        return REST
    return int(by_character[start + max(len(text[start:stop].rstrip()), 1) - 1])


def _parts_of_text(prompt: ParsedPrompt, text: str, template: ChatTemplate) -> NDArray[np.int64]:
    """The part of each character of the rendered prompt."""
    parts = np.full(len(text), REST, dtype=np.int64)
    messages = prompt.messages
    if messages[0]["role"] == "system":
        start, stop = _place(messages, 0, text, template)
        parts[start:stop] = SYSTEM
    else:
        start, stop = _default_system(messages, text, template)
        parts[start:stop] = SYSTEM
    start, stop = _place(messages, len(messages) - 1, text, template)
    turn = messages[-1]["content"]
    # Where a template strips the turn, its first character stands before the place.
    zero = start - (0 if stop - start == len(turn) else len(turn) - len(turn.lstrip()))
    spans = [(prompt.instruction, INSTRUCTION)]
    spans += [(x.span, len(PARTS) + i) for i, x in enumerate(prompt.constraints)]
    for span, part in spans:
        parts[max(start, zero + span.start) : min(stop, zero + span.stop)] = part
    return parts


def _place(messages: Sequence[Message], index: int, text: str, template: ChatTemplate) -> tuple[int, int]:
    """Where a message's text stands in the rendered conversation, as it is or stripped."""
    marked = [{**message, "content": _MARK} if i == index else message for i, message in enumerate(messages)]
    start = template.render(marked, add_generation_prompt=True).find(_MARK)
    content = messages[index]["content"]
    for form in (content, content.strip()):
        if start >= 0 and text.startswith(form, start):
            return start, start + len(form)
    raise LayoutError(f"the chat template changes the text of message {index + 1}")


def _default_system(messages: Sequence[Message], text: str, template: ChatTemplate) -> tuple[int, int]:
    """Where the template's own system prompt stands, which it puts in where the conversation has none."""
    first, _ = _place(messages, 0, text, template)
    try:
        probe = [{"role": "system", "content": _MARK}, {"role": "user", "content": _OTHER_MARK}]
        head, mark, tail = template.render(probe, add_generation_prompt=True).partition(_MARK)
    except LayoutError:  # it takes no system prompt
        return 0, 0
    tail, other, _ = tail.partition(_OTHER_MARK)
    opening = text[:first]
    is_framed = mark and other and opening.startswith(head) and opening.endswith(tail)
    return (len(head), first - len(tail)) if is_framed and len(head) + len(tail) < first else (0, 0)
