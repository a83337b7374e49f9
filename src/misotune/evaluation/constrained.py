"""Prompts with verifiable constraints, in IFEval's row format, and the reading of JSONL files."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import DataError


@dataclass(frozen=True, slots=True)
class ConstrainedPrompt:
    """One prompt and the constraints that its response is verified against.

    Attributes:
        key: Unique within the set.
        prompt: The user turn.
        instruction_id_list: Constraint types, such as `punctuation:no_comma`.
        kwargs: The arguments of each constraint's verifier, in the order of `instruction_id_list`.
        where: What to call the row in an error: file and line.
    """

    key: int | str
    prompt: str
    instruction_id_list: tuple[str, ...]
    kwargs: tuple[Mapping[str, Any], ...]
    where: str

    @property
    def messages(self) -> tuple[Mapping[str, str], ...]:
        """One user turn."""
        return ({"role": "user", "content": self.prompt},)

    def content(self) -> Any:
        """Returns all that decides the verdicts."""
        return [self.key, self.prompt, list(self.instruction_id_list), [dict(entry) for entry in self.kwargs]]

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str) -> "ConstrainedPrompt":
        """Returns the prompt of a row with the fields `key`, `prompt`, `instruction_id_list` and `kwargs`.

        Arguments that are null are dropped: the copy on the Hugging Face hub has every argument in every row.

        Raises:
            DataError: A field is missing or has the wrong form.
        """
        for field in ("key", "prompt", "instruction_id_list", "kwargs"):
            if field not in row:
                raise DataError(f"{where}: no field {field!r}; a row needs key, prompt, instruction_id_list, kwargs")
        if isinstance(row["key"], bool) or not isinstance(row["key"], (int, str)):
            raise DataError(f"{where}: 'key' must be a number or a text, got {row['key']!r:.80}")
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise DataError(f"{where}: 'prompt' must be a text that is not empty")
        types = row["instruction_id_list"]
        if not _is_list_of(types, str) or not types:
            raise DataError(f"{where}: 'instruction_id_list' must be a list of constraint types")
        kwargs = row["kwargs"]
        if not _is_list_of(kwargs, Mapping) or len(kwargs) != len(types):
            raise DataError(f"{where}: 'kwargs' must be a list of {len(types)} mappings, one per constraint")
        return cls(
            key=row["key"],
            prompt=row["prompt"],
            instruction_id_list=tuple(types),
            kwargs=tuple({name: v for name, v in entry.items() if v is not None} for entry in kwargs),
            where=where,
        )


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


def prompts_from_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[ConstrainedPrompt, ...]:
    """Returns the prompts of (where, row) pairs.

    Raises:
        DataError: A row has the wrong form, or two rows have the same key.
    """
    prompts: dict[str, ConstrainedPrompt] = {}
    for where, row in rows:
        prompt = ConstrainedPrompt.from_row(row, where)
        first = prompts.setdefault(str(prompt.key), prompt)
        if first is not prompt:
            raise DataError(f"{where}: key {prompt.key!r} stands already at {first.where}")
    return tuple(prompts.values())


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("FILE line N", row) for each line of a JSONL file that is not blank; `.gz` is unpacked.

    Raises:
        DataError: The file cannot be read, holds no row, or a line is not a JSON object.
    """
    num_rows = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    num_rows += 1
                    yield f"{path} line {number}", _parse_line(line, f"{path} line {number}")
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    if num_rows == 0:
        raise DataError(f"{path}: no rows; one JSON object a line is expected")


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, got {line.strip()!r:.60}")
    return row
