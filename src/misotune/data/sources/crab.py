"""Crab: multi-constraint instructions, in the published (rendered) form and in the seed form.

Published rows are `{id, cnt_id, source, messages}`: `_forward` rows with the constraints rendered into the
last user turn, after in-context demonstrations in some; `_reverse` rows (from response to constraints, an
auxiliary task), left out; and ShareGPT chats.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from misotune.data.crab_split import WHEN_ANSWERING, split_user_text
from misotune.data.records import BadRowError, Record, SkippedRowError, Template, brief
from misotune.data.sources.chat import chat_record, read_chat
from misotune.data.sources.fields import RowContext, row_domain, row_id

HUB_ID = "THU-KEG/Crab-SFT"
MIN_CONFIDENCE = 0.5
REVERSE = "reverse row (from response to constraints)"

# The published generator's most frequent template, for seed rows, which have none.
_SEED_TEMPLATE = Template(
    "{instruction}" + WHEN_ANSWERING + "\n{constraints}",
    "- {item}",
)


def crab_record(row: Mapping[str, Any], context: RowContext) -> Record:
    """Returns the record of a Crab row of either form."""
    if "Aug_instruction" in row:
        return _seed_record(row, context)
    identity = row_id(row, context)
    if identity.endswith("_reverse"):
        raise SkippedRowError(REVERSE)
    if row.get("source") == "sharegpt" and not identity.endswith("_forward"):
        return chat_record(row, context)
    return _forward_record(row, context, identity)


def _forward_record(row: Mapping[str, Any], context: RowContext, identity: str) -> Record:
    chat = read_chat(row)
    whole = Record(
        id=identity,
        source=context.source,
        domain=row_domain(row, str(row.get("source") or context.source)),
        history=chat.history,
        instruction=chat.user,
        constraints=(),
        output=chat.output,
        confidence=0.0,
        rule="whole turn",
        one_input="no template fits",
        notes=chat.notes,
    )
    split = split_user_text(chat.user)
    if split is None:
        return whole
    if split.confidence < MIN_CONFIDENCE:
        reason = f"split less certain than {MIN_CONFIDENCE:g}"
        return replace(whole, confidence=split.confidence, one_input=reason)
    return replace(
        whole,
        instruction=split.instruction,
        constraints=split.constraints,
        template=split.template,
        confidence=split.confidence,
        rule=split.rule,
        one_input=None,
    )


def _seed_record(row: Mapping[str, Any], context: RowContext) -> Record:
    """Seed rows keep the constraints apart, by type."""
    chat = read_chat(row)
    augmented = row["Aug_instruction"]
    extra = augmented.get("Additional_Instruction") if isinstance(augmented, Mapping) else None
    if not isinstance(augmented, Mapping) or not isinstance(extra, Mapping):
        raise BadRowError("'Aug_instruction' needs 'Refined_Instruction' and 'Additional_Instruction'")
    # Parquet fills the types that a row does not have with None.
    constraints = tuple(text for text in extra.values() if text is not None)
    for text in constraints:
        if not isinstance(text, str) or not text.strip():
            raise BadRowError(f"a constraint in 'Additional_Instruction' is not text: {brief(text)}")
    refined = augmented.get("Refined_Instruction") or ""
    # A refined instruction shorter than the original has lost its source text: the published generator takes
    # the original then, and so do we.
    keeps_text = isinstance(refined, str) and len(refined.split(" ")) >= len(chat.user.split(" "))
    return Record(
        id=row_id(row, context),
        source=context.source,
        domain=row_domain(row, str(row.get("source") or context.source)),
        history=chat.history,
        instruction=refined if keeps_text else chat.user,
        constraints=constraints,
        output=chat.output,
        template=_SEED_TEMPLATE,
        rule="seed form",
        notes=() if keeps_text else (*chat.notes, "original instruction kept, the refined one is shorter"),
    )
