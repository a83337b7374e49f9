"""Rows that list their constraints: beside the instruction, or of texts that stand in it already."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from misotune.data.records import Record
from misotune.data.sources.fields import RowContext, text_list_field

LISTED = "constraints listed and in the text"
ONLY_IDS = "constraints are names of checks, not texts"
PARTLY_FOUND = "only some of the listed constraints are in the text"
NOTHING_ELSE = "the text holds nothing but constraints"

# `length_constraints:number_words` and the like: what a verifier is called, not what the user was told.
_CHECK_ID = re.compile(r"[a-z0-9_ -]+:[a-z0-9_][a-z0-9_ -]*")
_OPENING_MARK = re.compile(r"(?:^|(?<=\n))[ \t]*(?:[-*#>•]|\d+[.)])[ \t]+$")


def with_constraints(record: Record, row: Mapping[str, Any], context: RowContext) -> Record:
    """Returns the record with the constraints of the row's `constraints` column; as it is without them.

    Some data give an instruction and constraints to add to it, others the whole prompt and a list of what it
    asks for. Where every constraint stands in the text to the letter, the text stays as it is and the bare
    instruction is what is left of it; where none does, the template joins them.

    Raises:
        BadRowError: The column is not a list of texts.
    """
    constraints = text_list_field(row, "constraints")
    if not constraints:
        return record
    if all(_CHECK_ID.fullmatch(text) for text in constraints):
        return replace(record, one_input=ONLY_IDS)
    found = [" " in text.strip() and text.strip() in record.instruction for text in constraints]
    template = context.template_for(record.id)
    if not any(found):
        return replace(record, constraints=constraints, template=template, rule="columns", one_input=None)
    if not all(found):
        return replace(record, one_input=PARTLY_FOUND)
    bare = without(record.instruction, constraints)
    if bare is None:
        return replace(record, one_input=NOTHING_ELSE)
    return replace(
        record,
        instruction=bare,
        constraints=tuple(text.strip() for text in constraints),
        template=template,
        full_text=record.instruction,
        rule=LISTED,
        one_input=None,
    )


def without(text: str, parts: Sequence[str]) -> str | None:
    r"""Returns a text without the parts that stand in it, their marks and end stops; None when nothing is left.

    >>> without("Name a river.\n- Be brief.\n- No commas.", ["Be brief.", "No commas."])
    'Name a river.'
    >>> without("input : Rhine. no commas. end it with P.S.. ", ["no commas", "end it with P.S."])
    'input : Rhine.'
    """
    for part in sorted((part.strip() for part in parts), key=len, reverse=True):  # one may hold another
        at = text.rfind(part)  # constraints follow the instruction
        if at < 0:
            continue
        after = re.sub(r"^[.;,]*(?=\s|$)", "", text[at + len(part) :])
        text = _closed(_OPENING_MARK.sub("", text[:at]), after)
    left = text.strip()
    return left if re.search(r"\w", left) else None


def _closed(before: str, after: str) -> str:
    """Two pieces of a text with the gap between them closed: to a space, or to a blank line at most."""
    head, tail = before.rstrip(), after.lstrip()
    newlines = (before[len(head) :] + after[: len(after) - len(tail)]).count("\n")
    gap = "\n" * min(newlines, 2) if newlines else " "
    return head + (gap if head and tail else "") + tail
