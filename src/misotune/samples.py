"""The multi-input sample: one row of a prepared dataset, the format between `prepare` and `train`.

A dataset is a folder of Parquet files with a `manifest.json`, or a hand-written JSONL file of such rows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from misotune.errors import DataError

Mode = Literal["para", "succ", "sft", "flat"]
Role = Literal["full", "constraint", "base", "chunked"]

MODES: tuple[Mode, ...] = get_args(Mode)
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class SampleInput:
    """One input x_i: chat messages that end with a user turn, and the part it plays."""

    role: Role
    messages: tuple[Mapping[str, str], ...]
    constraint: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One multi-input sample: n inputs that share one output (the paper's section 4.2).

    Attributes:
        id: Stable over runs of `prepare`.
        source: Where the row came from (`crab`, `starter`, a file's name).
        domain: A label for mixtures.
        inputs: The n inputs; for succ one input that the layout cuts into chunks.
        output: The response y, as plain text.
        history_loss: Multi-turn rows: also train on the earlier assistant turns.
        chunk: Rows of the same chunk, which follow one another, train as one causal text (mixture of
            instructions); empty: the row stands alone.
        confidence: How sure the split into instruction and constraints is, from 0 to 1.
        rule: What made that split.
    """

    id: str
    source: str
    domain: str
    inputs: tuple[SampleInput, ...]
    output: str
    history_loss: bool = False
    chunk: str = ""
    confidence: float = 1.0
    rule: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str) -> "Sample":
        """Returns the sample of a dataset row.

        Args:
            row: A row as read from Parquet or JSONL.
            where: What to call the row in an error: file and line.

        Raises:
            DataError: A field is missing or has the wrong form.
        """
        for key in ("inputs", "output"):
            if key not in row:
                raise DataError(f"{where}: no field {key!r}; a row needs 'inputs' and 'output'")
        if not isinstance(row["output"], str) or not row["output"].strip():
            raise DataError(f"{where}: 'output' must be a text that is not empty")
        if not isinstance(row["inputs"], Sequence) or not row["inputs"]:
            raise DataError(f"{where}: 'inputs' must be a list with at least one input")
        inputs = tuple(_input_from_row(entry, f"{where}: inputs[{i}]") for i, entry in enumerate(row["inputs"]))
        return cls(
            id=str(row.get("id") or where),
            source=str(row.get("source") or ""),
            domain=str(row.get("domain") or ""),
            inputs=inputs,
            output=row["output"],
            history_loss=bool(row.get("history_loss") or False),
            chunk=str(row.get("chunk") or ""),
            confidence=float(1.0 if row.get("confidence") is None else row["confidence"]),
            rule=str(row.get("rule") or ""),
        )

    def to_row(self) -> dict[str, Any]:
        """Returns the row of the prepared dataset, as plain dicts and lists."""
        return {
            "id": self.id,
            "source": self.source,
            "domain": self.domain,
            "inputs": [
                {
                    "role": entry.role,
                    "messages": [dict(message) for message in entry.messages],
                    "constraint": entry.constraint,
                }
                for entry in self.inputs
            ],
            "output": self.output,
            "history_loss": self.history_loss,
            "chunk": self.chunk,
            "confidence": self.confidence,
            "rule": self.rule,
        }


def select_inputs(sample: Sample, mode: Mode, roles: Collection[str]) -> list[Sample]:
    """Returns the samples that a mode trains on, from one row of a prepared dataset.

    Args:
        sample: The row.
        mode: `sft` and `succ` keep the full instruction alone; `para` the inputs whose role is in `roles`, as
            one sample; `flat` the same, each as a sample of its own.
        roles: Which of full, constraint and base to include (the paper's "w/o full" leaves one out). A row
            that has none of them keeps its full instruction.

    Raises:
        DataError: The mode needs the full instruction and the row has none.
    """
    whole = tuple(entry for entry in sample.inputs if entry.role in ("full", "chunked"))
    if mode in ("sft", "succ"):
        if not whole:
            raise DataError(f"row {sample.id}: miso.mode={mode} needs an input of role 'full', and it has none")
        return [replace(sample, inputs=whole[:1])]
    chosen = tuple(entry for entry in sample.inputs if entry.role in roles) or whole or sample.inputs
    if mode == "para":
        return [replace(sample, inputs=chosen)]
    return [replace(sample, id=f"{sample.id}#{i}", inputs=(entry,)) for i, entry in enumerate(chosen)]


def _input_from_row(entry: Any, where: str) -> SampleInput:
    if not isinstance(entry, Mapping) or entry.get("role") not in ROLES:
        role = entry.get("role") if isinstance(entry, Mapping) else entry
        raise DataError(f"{where}: role {role!r} is not one of {', '.join(ROLES)}")
    messages = entry.get("messages")
    if not isinstance(messages, Sequence) or not messages:
        raise DataError(f"{where}: 'messages' must be a list of chat messages")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise DataError(f"{where}: a message needs 'role' and 'content', got {message!r:.80}")
        if not isinstance(message["content"], str):
            raise DataError(f"{where}: a message's content must be text, got {message['content']!r:.80}")
    if messages[-1]["role"] != "user":
        raise DataError(f"{where}: the last message must be the user's, got {messages[-1]['role']!r}")
    return SampleInput(
        role=entry["role"],
        messages=tuple({"role": m["role"], "content": m["content"]} for m in messages),
        constraint=entry.get("constraint"),
    )
