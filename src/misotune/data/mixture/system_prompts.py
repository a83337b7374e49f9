"""System prompts of a mixture: drawn per row, beside the tools that a row's system message may list."""

import random
from collections.abc import Sequence
from dataclasses import replace

from misotune.data.records import Record
from misotune.data.sources.turns import tools_text

ADDED = "system prompt added"
REPLACED = "system prompt replaced"

# How the list of a row's tools begins in its system message.
_TOOLS = tools_text([{}]).partition("\n<tools>\n")[0]


def with_system_prompt(record: Record, prompts: Sequence[str], seed: int, *, replace_own: bool) -> Record:
    """Returns the record with one of the prompts as its system message; the list of its tools stays behind it.

    Args:
        record: The row.
        prompts: What to draw from, by seed and row id; none: the record stays as it is.
        seed: The mixture's seed.
        replace_own: Also where the record has a system prompt of its own.
    """
    if not prompts:
        return record
    has_system = bool(record.history) and record.history[0]["role"] == "system"
    content = record.history[0]["content"] if has_system else ""
    own, mark, tools = content.partition(_TOOLS)
    if own.strip() and not replace_own:
        return record
    prompt = random.Random(f"{seed}:system prompt of {record.id}").choice(prompts)
    message = {"role": "system", "content": f"{prompt}\n\n{mark}{tools}" if mark else prompt}
    return replace(
        record,
        history=(message, *record.history[has_system:]),
        notes=(*record.notes, REPLACED if own.strip() else ADDED),
    )
