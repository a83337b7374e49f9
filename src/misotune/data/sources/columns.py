"""Any data: rows with `instruction`, `constraints` and `output`, or with a chat."""

from collections.abc import Mapping
from typing import Any

from misotune.data.records import BadRowError, Record, brief
from misotune.data.sources.chat import chat_record
from misotune.data.sources.fields import RowContext, row_domain, row_id, text_field, text_list_field


def columns_record(row: Mapping[str, Any], context: RowContext) -> Record:
    """Returns the record of a row, by the columns it has.

    `constraints` may be missing; `input` (as in Alpaca's data) is the text that the instruction is about.
    """
    if row.get("instruction") is not None:
        return instruction_record(row, context)
    if row.get("messages") is not None or row.get("conversations") is not None:
        return chat_record(row, context)
    raise BadRowError(
        f"no columns 'instruction' and 'output', nor 'messages' (the row has {', '.join(map(str, row)) or 'none'})"
    )


def instruction_record(row: Mapping[str, Any], context: RowContext) -> Record:
    """Returns the record of a row with `instruction`, perhaps `input` and `constraints`, and `output`."""
    instruction = text_field(row, "instruction")
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        raise BadRowError(f"'input' must be text, it is {brief(given)}")
    if given and given.strip():
        instruction = f"{instruction}\n\n{given}"
    identity = row_id(row, context)
    return Record(
        id=identity,
        source=context.source,
        domain=row_domain(row, context.source),
        history=(),
        instruction=instruction,
        constraints=text_list_field(row, "constraints"),
        output=text_field(row, "output"),
        template=context.template_for(identity),
    )
