"""Responses made elsewhere: reading them, and pairing them with a task's prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import DataError
from misotune.evaluation.constrained import read_jsonl
from misotune.evaluation.task import Prompt

# Rows that may be paired by their line although their prompt is worded differently. GPT-4's published
# responses to IFEval have one such row, with an older wording.
_MAX_REWORDED_SHARE = 0.01
_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    key: str | None
    prompt: str | None
    response: str


def read_responses(path: Path, prompts: Sequence[Prompt], all_prompts: Sequence[Prompt]) -> tuple[list[str], list[str]]:
    """Returns the response to each of `prompts`, and notes on what was paired in an unusual way.

    Args:
        path: JSONL (`.gz` too) of {prompt, response} or {key, response}; the key counts where a row has both.
        prompts: The prompts to be scored.
        all_prompts: The whole set, which `prompts` is the beginning of.

    Raises:
        DataError: A row is wrong, two rows answer one prompt, or a prompt has no response.
    """
    rows = [_row(row, where) for where, row in read_jsonl(path)]
    paired = _pair(rows, all_prompts)
    notes: list[str] = []
    if all(prompt.key not in paired for prompt in prompts):
        raise DataError(f"{path}: none of its {len(rows)} rows answers a prompt of this task; {_first(rows)}")
    for prompt, row in _reworded(rows, all_prompts, paired):
        paired[prompt.key] = row
        notes.append(f"{row.where}: its prompt is not worded as that of key {prompt.key}; paired by line order")
    missing = [prompt for prompt in prompts if prompt.key not in paired]
    if missing:
        named = ", ".join(f"key {p.key} ({p.where})" for p in missing[:_NUM_NAMED])
        raise DataError(f"{path}: no response to {len(missing)} of {len(prompts)} prompts, the first: {named}")
    used = {id(row) for row in paired.values()}
    num_foreign = sum(id(row) not in used for row in rows)
    if num_foreign:
        notes.append(f"{path}: {num_foreign} rows answer no prompt of this task and were left out")
    return [paired[prompt.key].response for prompt in prompts], notes


def _row(row: Mapping[str, Any], where: str) -> _Row:
    key, prompt, response = row.get("key"), row.get("prompt"), row.get("response")
    if key is None and not isinstance(prompt, str):
        raise DataError(f"{where}: needs a field 'prompt' (text) or 'key' to say what it answers")
    if not isinstance(response, str):
        raise DataError(f"{where}: 'response' must be a text, got {response!r:.60}")
    return _Row(where, None if key is None else str(key), prompt, response)


def _pair(rows: Sequence[_Row], prompts: Sequence[Prompt]) -> dict[int | str, _Row]:
    by_key = {str(p.key): p for p in prompts}
    by_text: dict[str, list[Prompt]] = {}
    for p in prompts:
        by_text.setdefault(p.prompt.strip(), []).append(p)
    paired: dict[int | str, _Row] = {}
    for row in rows:
        if row.key is not None:
            answered = [by_key[row.key]] if row.key in by_key else []
        else:  # IFEval-Flatten has a prompt twice, whose constraint stands twice in IFEval's list
            answered = by_text.get((row.prompt or "").strip(), [])
        for prompt in answered:
            first = paired.setdefault(prompt.key, row)
            if first is not row and len(answered) == 1:
                raise DataError(f"{row.where}: answers key {prompt.key}, as {first.where} does already")
    return paired


def _reworded(
    rows: Sequence[_Row], prompts: Sequence[Prompt], paired: Mapping[int | str, _Row]
) -> list[tuple[Prompt, _Row]]:
    """Returns the pairs that only their line holds together: few, and all other rows stand in order."""
    if len(rows) != len(prompts):
        return []
    left = [(p, row) for p, row in zip(prompts, rows, strict=True) if p.key not in paired]
    in_order = all(paired.get(p.key, row) is row for p, row in zip(prompts, rows, strict=True))
    keyless = all(row.key is None for _, row in left)
    few = len(left) <= max(1, _MAX_REWORDED_SHARE * len(rows))
    return left if in_order and keyless and few else []


def _first(rows: Sequence[_Row]) -> str:
    row = rows[0]
    return f"the first has key {row.key!r}" if row.key is not None else f"the first has prompt {row.prompt!r:.60}"
