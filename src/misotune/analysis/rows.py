"""The rows that are looked at: the embedded starter set's, or those of a prepared dataset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from misotune.data.dataset import read_dataset
from misotune.data.files import Row, read_rows
from misotune.data.records import Record
from misotune.data.sources.columns import instruction_record
from misotune.data.sources.fields import RowContext, template_chooser
from misotune.data.starter import TRAIN_FILE
from misotune.errors import DataError, LayoutError
from misotune.layout import ChatTemplate, EncodedSample, encode_sample
from misotune.samples import Role, Sample, SampleInput

STARTER = "starter"

# With four constraints a row has 2^4 inputs.
_FEWEST_CONSTRAINTS = 4


@dataclass(frozen=True, slots=True)
class AnalysedRow:
    """A row as messages and as token ids."""

    sample: Sample
    encoded: EncodedSample

    def with_inputs(self, num_inputs: int, *, is_repeated: bool = False) -> "AnalysedRow":
        """Returns the row with n inputs: its own in order, begun again where it has fewer.

        Args:
            num_inputs: n.
            is_repeated: The first input n times.
        """
        length = 1 if is_repeated else len(self.encoded.inputs)
        chosen = [i % length for i in range(num_inputs)]
        return AnalysedRow(
            replace(self.sample, inputs=tuple(self.sample.inputs[i] for i in chosen)),
            replace(self.encoded, inputs=tuple(self.encoded.inputs[i] for i in chosen)),
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that are looked at, and where they came from.

    Attributes:
        name: The starter set's name, or the dataset's path.
        items: The rows.
        num_left_out: Rows before the last of them that could not be laid out, or had too few inputs.
    """

    name: str
    items: tuple[AnalysedRow, ...]
    num_left_out: int

    def to_json(self) -> dict[str, Any]:
        """Returns where the rows came from and what they are, for the result file."""
        return {
            "name": self.name,
            "num_left_out": self.num_left_out,
            "rows": [
                {
                    "id": row.sample.id,
                    "input_tokens": [len(x) for x in row.encoded.inputs],
                    "output_tokens": len(row.encoded.output),
                }
                for row in self.items
            ],
        }


def load_rows(
    data: Path | None, template: ChatTemplate, *, limit: int, max_length: int, needs_several_inputs: bool = True
) -> Rows:
    """Returns the first rows that can be looked at.

    Args:
        data: A prepared dataset or JSON lines of its rows; None: the starter set, with an input for every subset
            of a row's constraints.
        template: The model's chat template.
        limit: Rows at most.
        max_length: Tokens of the longest pair; longer outputs are cut.
        needs_several_inputs: Leave out rows with one input.

    Raises:
        DataError: The dataset cannot be read, or no row is left.
    """
    rows: list[AnalysedRow] = []
    num_left_out = 0
    for sample in starter_samples() if data is None else read_dataset(data):
        if len(rows) == limit:
            break
        encoded = _encoded(sample, template, max_length)
        if encoded is None or (needs_several_inputs and len(encoded.inputs) < 2):
            num_left_out += 1
        else:
            rows.append(AnalysedRow(sample, encoded))
    name = STARTER if data is None else str(data)
    if not rows:
        raise DataError(_none_left(name, max_length, needs_several_inputs))
    return Rows(name, tuple(rows), num_left_out)


def starter_samples() -> Iterator[Sample]:
    """Yields the starter rows with four constraints or more, with one input for every subset of them.

    The paper's section 3.1: a response that meets all constraints is a valid one for any subset of them.
    """
    context = RowContext(STARTER, "", template_chooser("mixed", seed=0))
    for row in read_rows(TRAIN_FILE):
        assert isinstance(row, Row), "the starter set is whole"
        record = instruction_record(row.values, context)
        if len(record.constraints) >= _FEWEST_CONSTRAINTS:
            yield _with_subsets(record)


def _with_subsets(record: Record) -> Sample:
    """All constraints, each alone, none, then all pairs, triples and so on."""
    items = record.constraints
    between = chain.from_iterable(combinations(items, size) for size in range(2, len(items)))
    return Sample(
        id=record.id,
        source=record.source,
        domain=record.domain,
        inputs=(
            _input(record, "full", items),
            *(_input(record, "constraint", (item,)) for item in items),
            _input(record, "base", ()),
            *(_input(record, "constraint", subset) for subset in between),
        ),
        output=record.output,
    )


def _input(record: Record, role: Role, constraints: Sequence[str]) -> SampleInput:
    text = record.template.render(record.instruction, constraints)
    return SampleInput(role, (*record.history, {"role": "user", "content": text}))


def _encoded(sample: Sample, template: ChatTemplate, max_length: int) -> EncodedSample | None:
    try:
        return encode_sample(sample, template).cut(max_length)
    except LayoutError:
        return None


def _none_left(name: str, max_length: int, needs_several_inputs: bool) -> str:
    if needs_several_inputs:
        return (
            f"{name}: no row with several inputs in {max_length} tokens; prepare it with --mode para, raise "
            "--max-length, or give one input several times with --repeat"
        )
    return f"{name}: no row in {max_length} tokens; raise --max-length"
