"""Reasoning traces: instruction, think, response; the thinking belongs to the input (paper, section 5.2)."""

import string
from collections.abc import Mapping
from typing import Any

from misotune.data.records import Record
from misotune.data.sources.fields import RowContext, row_domain, row_id, text_field, text_list_field

QUESTION_COLUMNS = ("question", "instruction", "prompt")
THINK_COLUMNS = ("reasoning", "think", "reasoning_content")
ANSWER_COLUMNS = ("answer_text", "response", "answer", "output")


def r1_record(row: Mapping[str, Any], context: RowContext) -> Record:
    """Returns the one-input record of a trace: question, options and thinking are the input."""
    question = text_field(row, *QUESTION_COLUMNS)
    options = text_list_field(row, "options")
    if options and len(options) <= len(string.ascii_uppercase):
        lettered = zip(string.ascii_uppercase, options, strict=False)
        question += "\n\n" + "\n".join(f"{letter}. {option}" for letter, option in lettered)
    think = text_field(row, *THINK_COLUMNS).strip()
    return Record(
        id=row_id(row, context),
        source=context.source,
        domain=row_domain(row, "reasoning"),
        history=(),
        instruction=f"{question}\n\n<think>\n{think}\n</think>",
        constraints=(),
        output=text_field(row, *ANSWER_COLUMNS),
        rule="think in the input",
        one_input="instruction and think are one input",
    )
