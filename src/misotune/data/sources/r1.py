"""Reasoning traces: instruction, think, response; the thinking belongs to the input (paper, section 5.2)."""

import string
from collections.abc import Mapping
from typing import Any

from misotune.data.records import BadRowError, Record
from misotune.data.sources.chat import chat_record, has_chat
from misotune.data.sources.fields import (
    RowContext,
    checked_text,
    names_of,
    row_domain,
    row_id,
    text_field,
    text_list_field,
)
from misotune.data.sources.thinking import ONE_INPUT, RULES, Think, place, split_answer

QUESTION_COLUMNS = ("question", "instruction", "prompt", "problem", "query")
THINK_COLUMNS = ("reasoning", "think", "thinking", "reasoning_content")
ANSWER_COLUMNS = ("answer_text", "response", "answer", "output", "solution")


def r1_record(row: Mapping[str, Any], context: RowContext, *, think: Think = "input") -> Record:
    """Returns the one-input record of a trace.

    The thinking has a column of its own, or stands between `<think>` and `</think>` before the answer, in a
    column or in the turns of a chat.

    Args:
        row: Question, thinking and answer, perhaps with `options`; or a chat.
        context: What the source knows besides.
        think: Where the thinking goes.
    """
    if has_chat(row) and not any(row.get(name) for name in THINK_COLUMNS):
        record = chat_record(row, context, think=think, tagged=True)
        if record.rule not in RULES.values():
            raise BadRowError("no thinking in the last answer of the chat")
        return record
    question, thinking, answer = _question(row), _thinking(row), text_field(row, *ANSWER_COLUMNS)
    if thinking is None:
        thinking, answer = split_answer(answer)
        if not thinking:
            wanted = " or ".join(map(repr, THINK_COLUMNS))
            raise BadRowError(f"no column {wanted}, and no <think> in the answer (the row has {names_of(row)})")
    instruction, output = place(question, thinking, answer, think)
    return Record(
        id=row_id(row, context),
        source=context.source,
        domain=row_domain(row, "reasoning"),
        history=(),
        instruction=instruction,
        constraints=(),
        output=output,
        rule=RULES[think],
        one_input=ONE_INPUT[think],
    )


def _question(row: Mapping[str, Any]) -> str:
    """The question, with lettered options where there are some."""
    question = text_field(row, *QUESTION_COLUMNS)
    options = text_list_field(row, "options")
    if not options or len(options) > len(string.ascii_uppercase):
        return question
    lettered = zip(string.ascii_uppercase, options, strict=False)
    return question + "\n\n" + "\n".join(f"{letter}. {option}" for letter, option in lettered)


def _thinking(row: Mapping[str, Any]) -> str | None:
    name = next((name for name in THINK_COLUMNS if row.get(name) is not None), None)
    return None if name is None else checked_text(name, row[name]).strip()
