"""The record: what every source makes of a row, and the pure step from a record to multi-input samples.

A source reads rows of one form and yields records; everything after that is the same for all sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from misotune.samples import Mode, Role, Sample, SampleInput

Message = Mapping[str, str]


class SkippedRowError(Exception):
    """A row that a source leaves out by rule (it is counted, and is no fault of the file)."""


class BadRowError(Exception):
    """A row that cannot be used; the message is the reason, the reader adds file and line."""


def brief(value: object) -> str:
    """Returns a value as an error message shows it: on one line, and short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True, slots=True)
class Template:
    r"""How an instruction and its constraints become one user text.

    >>> Template("{instruction}\n\n{constraints}", "- {item}").render("Name it.", ["Be brief.", "No commas."])
    'Name it.\n\n- Be brief.\n- No commas.'

    Attributes:
        text: Holds `{instruction}` and `{constraints}` once each.
        item: One constraint: holds `{item}`, and perhaps `{index}`, which counts from 1.
        separator: Stands between two constraints.
    """

    text: str
    item: str = "{item}"
    separator: str = "\n"

    def render(self, instruction: str, constraints: Sequence[str]) -> str:
        """Returns the user text; without constraints, the instruction alone."""
        if not constraints:
            return instruction
        items = [self.item.format(item=item, index=i) for i, item in enumerate(constraints, start=1)]
        return self.text.format(instruction=instruction, constraints=self.separator.join(items))


PLAIN = Template("{instruction}\n\n{constraints}")


@dataclass(frozen=True, slots=True)
class Record:
    """One instruction-response pair with its constraints still apart.

    Attributes:
        id: Stable over runs; the source's own id where it has one.
        source: Where the row came from.
        domain: A label for mixtures.
        history: Messages before the last user turn (system, demonstrations, earlier turns), in every input.
        instruction: The last user turn without its constraints.
        constraints: None of them: the row has one input.
        output: The response.
        template: Renders the last user turn.
        full_text: The last user turn as it was, where constraints stand among its sentences and no template
            gives it back; None: the template does.
        history_loss: Also train on the assistant turns of the history.
        confidence: How sure the split into instruction and constraints is, from 0 to 1.
        rule: What made the split.
        checks: What verifies each constraint, in the order of `constraints`: a type and its arguments, as in
            IFEval; empty: nothing is known to.
        one_input: Why the row has no constraints, for the account; None when it has some.
        notes: What the source changed in the row, for the account.
    """

    id: str
    source: str
    domain: str
    history: tuple[Message, ...]
    instruction: str
    constraints: tuple[str, ...]
    output: str
    template: Template = PLAIN
    full_text: str | None = None
    history_loss: bool = False
    confidence: float = 1.0
    rule: str = "columns"
    checks: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    one_input: str | None = None
    notes: tuple[str, ...] = ()


def to_samples(record: Record, mode: Mode) -> list[Sample]:
    """Returns the samples of a record: one, or for flat one per input.

    para has the full instruction, one input per constraint in the row's own template, and the bare
    instruction; succ has one input that the layout cuts. Chats that train on every assistant turn keep one
    whole input in every mode.
    """
    if mode == "flat":
        inputs = _parallel_inputs(record)
        many = len(inputs) > 1
        return [_sample(record, (entry,), f"#{i}" if many else "") for i, entry in enumerate(inputs)]
    if mode == "para":
        return [_sample(record, _parallel_inputs(record))]
    is_cut = mode == "succ" and not record.history_loss
    return [_sample(record, (_input(record, "chunked" if is_cut else "full", record.constraints),))]


def _parallel_inputs(record: Record) -> tuple[SampleInput, ...]:
    full = _input(record, "full", record.constraints)
    if not record.constraints:
        return (full,)
    single = (_input(record, "constraint", (item,)) for item in record.constraints)
    return (full, *single, _input(record, "base", ()))


def _input(record: Record, role: Role, constraints: tuple[str, ...]) -> SampleInput:
    text = record.template.render(record.instruction, constraints)
    if role in ("full", "chunked") and record.full_text is not None:
        text = record.full_text
    messages = (*record.history, {"role": "user", "content": text})
    return SampleInput(role, messages, constraints[0] if role == "constraint" else None)


def _sample(record: Record, inputs: tuple[SampleInput, ...], suffix: str = "") -> Sample:
    return Sample(
        id=record.id + suffix,
        source=record.source,
        domain=record.domain,
        inputs=inputs,
        output=record.output,
        history_loss=record.history_loss,
        confidence=record.confidence,
        rule=record.rule,
    )
