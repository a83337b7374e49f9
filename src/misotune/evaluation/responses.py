"""Responses made elsewhere: reading them, and pairing them with a task's prompts."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import DataError
from misotune.evaluation.constrained import read_jsonl
from misotune.evaluation.task import Prompt, ResponseFields

# Rows that may be paired by their line although their prompt is worded differently. GPT-4's published
# responses to IFEval have one such row, with an older wording.
_MAX_REWORDED_SHARE = 0.01
_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    key: str | None
    text: str | None
    response: str


def read_responses(
    path: Path,
    prompts: Sequence[Prompt],
    all_prompts: Sequence[Prompt],
    published: ResponseFields | None = None,
) -> tuple[list[str], list[str]]:
    """Returns the response to each of `prompts`, and notes on what was paired in an unusual way.

    Rows without a key are paired by the prompt's text. Prompts of one text take the rows of that text in order; a
    single row answers all of them.

    Args:
        path: JSONL (`.gz` too) of {prompt, response} or {key, response}; the key counts where a row has both.
        prompts: The prompts to be scored.
        all_prompts: The whole set, which `prompts` is the beginning of.
        published: What the fields are called in the task's published files, which may be given as they are.

    Raises:
        DataError: A row is wrong, a prompt has several rows or none, or the rows of one text are neither one nor as
            many as its prompts.
    """
    layouts = [ResponseFields(), *([] if published is None else [published])]
    rows = [_row(row, where, layouts) for where, row in read_jsonl(path)]
    paired = _pair(rows, prompts, all_prompts)
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
    other = [row for p in prompts if (row := paired[p.key]).key is not None and row.text not in (None, _text(p))]
    if other:
        notes.append(
            f"{len(other)} of {len(prompts)} responses have the key but not the wording of their prompt, the first: "
            f"{other[0].where}"
        )
    used = {id(row) for row in paired.values()}
    num_foreign = sum(id(row) not in used for row in rows)
    if num_foreign:
        notes.append(f"{path}: {num_foreign} rows answer no prompt of this task and were left out")
    return [paired[prompt.key].response for prompt in prompts], notes


def _row(row: Mapping[str, Any], where: str, layouts: Sequence[ResponseFields]) -> _Row:
    fields = next((fields for fields in layouts if fields.response in row), None)
    if fields is None:
        raise DataError(
            f"{where}: needs {' or '.join(repr(f.response) for f in layouts)}, the response; it has "
            f"{', '.join(map(repr, row)) or 'no field'}"
        )
    key, prompt, response = row.get(fields.key), row.get(fields.prompt), row[fields.response]
    if key is None and not isinstance(prompt, str):
        raise DataError(f"{where}: needs a field {fields.prompt!r} (text) or {fields.key!r} to say what it answers")
    if not isinstance(response, str):
        raise DataError(f"{where}: {fields.response!r} must be a text, got {response!r:.60}")
    text = prompt.strip() if isinstance(prompt, str) else None
    return _Row(where, None if key is None else str(key), text, response)


def _text(prompt: Prompt) -> str:
    """Returns what rows are compared by; files are written with and without the white space around it."""
    return prompt.prompt.strip()


def _pair(rows: Sequence[_Row], prompts: Sequence[Prompt], all_prompts: Sequence[Prompt]) -> dict[int | str, _Row]:
    """Returns the row of each prompt that has one, by the prompt's key."""
    by_key = {str(p.key): p for p in all_prompts}
    paired: dict[int | str, _Row] = {}
    rows_of_text: dict[str | None, list[_Row]] = {}
    for row in rows:
        if row.key is None:
            rows_of_text.setdefault(row.text, []).append(row)
        elif row.key in by_key:
            _answer(by_key[row.key], row, paired)
    prompts_of_text: dict[str, list[Prompt]] = {}
    for p in all_prompts:
        prompts_of_text.setdefault(_text(p), []).append(p)
    scored = {p.key for p in prompts}
    for text, same_prompts in prompts_of_text.items():
        for prompt, row in _in_order(same_prompts, rows_of_text.get(text, []), scored):
            _answer(prompt, row, paired)
    return paired


def _answer(prompt: Prompt, row: _Row, paired: dict[int | str, _Row]) -> None:
    first = paired.setdefault(prompt.key, row)
    if first is not row:
        raise DataError(f"{row.where}: answers key {prompt.key}, as {first.where} does already")


def _in_order(
    prompts: Sequence[Prompt], rows: Sequence[_Row], scored: Container[int | str]
) -> Iterable[tuple[Prompt, _Row]]:
    """Returns the pairs of prompts and rows of one text.

    Two constraints of an IFEval prompt, two depths of a short document or two crowd workers make one prompt of two
    keys. Where only some are scored, because of a limit, these may have their rows alone.
    """
    if len(prompts) == 1:
        return [(prompts[0], row) for row in rows]  # the second is refused: it answers what the first does
    if len(rows) == 1:
        return [(prompt, rows[0]) for prompt in prompts]
    if len(rows) not in (0, len(prompts), sum(p.key in scored for p in prompts)):
        named = ", ".join(row.where for row in rows[:_NUM_NAMED])
        raise DataError(
            f"{named}{', ...' if len(rows) > _NUM_NAMED else ''}: {len(rows)} rows have one prompt, which the task has "
            f"{len(prompts)} times (keys {', '.join(str(p.key) for p in prompts)}); give one row for all of them, "
            f"{len(prompts)} in their order, or rows with keys"
        )
    return zip(prompts, rows, strict=False)


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
    return f"the first has key {row.key!r}" if row.key is not None else f"the first has prompt {row.text!r:.60}"
