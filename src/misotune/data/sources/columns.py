"""Any data: rows with an instruction and an output under one of their usual names, or with a chat."""

from collections.abc import Mapping, Sequence
from typing import Any

from misotune.data.records import BadRowError, Message, Record, SkippedRowError, brief
from misotune.data.sources.chat import chat_record, has_chat
from misotune.data.sources.constraints import with_constraints
from misotune.data.sources.crab import crab_record
from misotune.data.sources.fields import (
    RowContext,
    checked_text,
    optional_text,
    row_domain,
    row_id,
)
from misotune.data.sources.missing import ambiguous, missing
from misotune.data.sources.r1 import THINK_COLUMNS, r1_record
from misotune.data.sources.thinking import Think

# The first of each is ours and always wins; the others count when the row has one of them alone. The names after
# the bar are weak: they count when there is none before it.
INSTRUCTION_COLUMNS = ("instruction", "prompt", "question", "query", "problem"), ("text", "input", "inputs")
OUTPUT_COLUMNS = (
    ("output", "response", "answer", "answers", "completion", "solution", "canonical_solution", "generated"),
    ("code", "target", "targets"),
)
INPUT_COLUMNS = ("input", "context", "passage")
UNANSWERED = "question without an answer"


def columns_record(row: Mapping[str, Any], context: RowContext, *, think: Think = "input") -> Record:
    """Returns the record of a row, by the columns it has.

    Args:
        row: A chat; a trace (with a column of its own for the thinking); an instruction and an output; or a row
            of Crab.
        context: What the source knows besides.
        think: Where the thinking of a trace goes.

    Raises:
        BadRowError: The row has no such columns, or several that could be the same thing.
    """
    if "Aug_instruction" in row or ("cnt_id" in row and has_chat(row)):
        return crab_record(row, context)  # a file of Crab's own rows
    if row.get("instruction") is None and has_chat(row):
        return chat_record(row, context, think=think)
    if any(isinstance(row.get(name), str) and row[name].strip() for name in THINK_COLUMNS):
        return r1_record(row, context, think=think)
    return instruction_record(row, context)


def instruction_record(row: Mapping[str, Any], context: RowContext) -> Record:
    """Returns the record of a row with an instruction and an output.

    There may be `input` (or `context`), the text that the instruction is about; `constraints`; `system`, and
    `history`, pairs of earlier turns (both as in Alpaca's data).
    """
    instruction = _found(row, INSTRUCTION_COLUMNS)
    output = _found(row, OUTPUT_COLUMNS)
    if instruction is None or output is None:
        raise missing(row, instruction, output)
    text = checked_text(instruction, row[instruction])
    given = next((optional_text(row, name) for name in INPUT_COLUMNS if name != instruction and row.get(name)), "")
    if given.strip():
        text = f"{text}\n\n{given}"
    history = _history(row)
    record = Record(
        id=row_id(row, context),
        source=context.source,
        domain=row_domain(row, context.source),
        history=history,
        instruction=text,
        constraints=(),
        output=_answer(output, row[output]),
        history_loss=any(message["role"] == "assistant" for message in history),
    )
    return with_constraints(record, row, context)


def _found(row: Mapping[str, Any], columns: tuple[tuple[str, ...], tuple[str, ...]]) -> str | None:
    """The one column of the row that goes by a usual name; None without.

    Raises:
        BadRowError: There are several.
    """
    ours = columns[0][0]
    if row.get(ours) is not None:
        return ours
    for names in columns:
        there = [name for name in names if row.get(name) is not None]
        if len(there) > 1:
            raise ambiguous(row, ours, there)
        if there:
            return there[0]
    return None


def _answer(name: str, value: Any) -> str:
    """The output; of several `answers` (as SQuAD has them) the first."""
    if name != "answers":
        return checked_text(name, value)
    texts = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        raise BadRowError(f"'answers' must be a list of texts, it is {brief(value)}")
    if not texts:
        raise SkippedRowError(UNANSWERED)
    first = texts[0].get("text") if isinstance(texts[0], Mapping) else texts[0]
    return checked_text(name, first)


def _history(row: Mapping[str, Any]) -> tuple[Message, ...]:
    system = optional_text(row, "system")
    messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    pairs: Any = row.get("history") or ()
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        raise BadRowError(f"'history' must be a list of question and answer, it is {brief(pairs)}")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise BadRowError(f"history[{i}] must be a question and an answer, it is {brief(pair)}")
        question, answer = (checked_text(f"history[{i}]", text) for text in pair)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tuple(messages)
