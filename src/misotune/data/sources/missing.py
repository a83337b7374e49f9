"""What to tell a user whose rows have columns that no source knows: what is missing, and the `--map` to give."""

from collections.abc import Mapping, Sequence
from typing import Any

from misotune.data.records import BadRowError
from misotune.data.sources.fields import ID_COLUMNS, names_of

_LIKE_AN_INSTRUCTION = ("instruct", "prompt", "question", "query", "user", "human", "request", "task", "input", "src")
_LIKE_AN_OUTPUT = (
    "output",
    "respon",
    "answer",
    "completion",
    "reply",
    "assistant",
    "target",
    "solution",
    "chosen",
    "gpt",
    "summary",
    "tgt",
)


def missing(row: Mapping[str, Any], instruction: str | None, output: str | None) -> BadRowError:
    """Returns the error of a row without a column for the instruction or the output.

    Args:
        row: The row.
        instruction: The column that is its instruction; None: there is none.
        output: The same for the output.
    """
    what = " and ".join(name for name, found in (("instruction", instruction), ("output", output)) if found is None)
    reason = f"no column for the {what}" + ("" if instruction or output else ", nor 'messages'")
    return BadRowError(f"{reason} (the row has {names_of(row)}; {_cure(row, instruction, output)})")


def ambiguous(row: Mapping[str, Any], wanted: str, candidates: Sequence[str]) -> BadRowError:
    """Returns the error of a row with several columns that could be the same thing."""
    named = " and ".join(map(repr, candidates))
    return BadRowError(f"{named} could all be the {wanted} (choose one: --map {wanted}={candidates[0]})")


def _cure(row: Mapping[str, Any], instruction: str | None, output: str | None) -> str:
    """The option to give; its columns are guessed by their names, else the longest text is taken."""
    nested = next((name for name, value in row.items() if _holds_rows(value)), None)
    if nested is not None and instruction is None:
        return f"{nested!r} holds rows: write each on a line of its own, as JSON lines"
    texts = {str(name): value for name, value in row.items() if _could_be_text(name, value)}
    free = [name for name in texts if name not in (instruction, output)]
    pairs: list[str] = []
    for wanted, found, hints in (
        ("output", output, _LIKE_AN_OUTPUT),
        ("instruction", instruction, _LIKE_AN_INSTRUCTION),
    ):
        if found is None:
            likely = next((name for name in free if any(hint in name.lower() for hint in hints)), None)
            if likely is None and not free:
                return "and no other column with text"
            guess = likely or max(free, key=lambda name: len(texts[name]))
            free = [name for name in free if name != guess]
            pairs.insert(0, f"{wanted}={guess}")
    return f"name it: --map {','.join(pairs)}"


def _could_be_text(name: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and name not in (*ID_COLUMNS, "source", "domain", "model")


def _holds_rows(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(entry, Mapping) for entry in value)
