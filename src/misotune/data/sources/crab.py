"""Crab: multi-constraint instructions, in the published (rendered) form and in the seed form.

Published rows are `{id, cnt_id, source, messages}`: `_forward` rows with the constraints rendered into the
last user turn, after in-context demonstrations in some; `_reverse` rows (from response to constraints, an
auxiliary task; the generator calls some of them `_fewshot`), left out unless asked for; and ShareGPT chats.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from misotune.data.crab_split import split_user_text
from misotune.data.crab_templates import WHEN_ANSWERING
from misotune.data.records import BadRowError, Record, SkippedRowError, Template, brief
from misotune.data.sources.chat import chat_record, read_chat
from misotune.data.sources.fields import RowContext, row_domain, row_id

HUB_ID = "THU-KEG/Crab-SFT"
MIN_CONFIDENCE = 0.5
REVERSE = "reverse row (from response to constraints)"
_REVERSE_ENDINGS = ("_reverse", "_fewshot")

# The published generator's most frequent template, for seed rows, which have none.
_SEED_TEMPLATE = Template(
    "{instruction}" + WHEN_ANSWERING + "\n{constraints}",
    "- {item}",
)


def crab_record(
    row: Mapping[str, Any],
    context: RowContext,
    *,
    keep_reverse: bool = False,
    min_confidence: float = MIN_CONFIDENCE,
) -> Record:
    """Returns the record of a Crab row of either form.

    Args:
        row: The row.
        context: What the source knows besides.
        keep_reverse: Keep rows of the auxiliary task, as one input.
        min_confidence: Rows split less certainly than this, from 0 to 1, stay one input.

    Raises:
        SkippedRowError: A reverse row, and they are not kept.
    """
    if "Aug_instruction" in row:
        return _seed_record(row, context)
    identity = row_id(row, context)
    if identity.endswith(_REVERSE_ENDINGS):
        if not keep_reverse:
            raise SkippedRowError(REVERSE)
        return replace(_whole_record(row, context, identity), confidence=1.0, rule="reverse", one_input=REVERSE)
    if row.get("source") == "sharegpt" and not identity.endswith("_forward"):
        return chat_record(row, context)
    return _forward_record(row, context, identity, min_confidence)


def _whole_record(row: Mapping[str, Any], context: RowContext, identity: str) -> Record:
    """The row with its last user turn unsplit; earlier turns are demonstrations."""
    chat = read_chat(row)
    return Record(
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


def _forward_record(row: Mapping[str, Any], context: RowContext, identity: str, min_confidence: float) -> Record:
    whole = _whole_record(row, context, identity)
    split = split_user_text(whole.instruction)
    if split is None:
        return whole
    if split.confidence < min_confidence:
        reason = f"split less certain than {min_confidence:g}"
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
