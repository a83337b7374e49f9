"""A row as training will see it: segments, tokens, positions, trained tokens, and who attends to whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from misotune.attention.spans import SampleSpans, Span
from misotune.errors import DataError
from misotune.layout import EncodedSample, build_row
from misotune.preview.reading import Reading
from misotune.preview.tokens import special_ids, token_texts
from misotune.samples import Sample, SampleInput, select_inputs


class Token(NamedTuple):
    """One token; `text` is empty where it is a part of a character only."""

    id: int
    text: str
    position: int
    is_trained: bool
    is_special: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """An input or the output.

    Attributes:
        name: `x1` to `xn`, or `y`.
        role: full, constraint, base, `chunk 2 of 3`, or output.
        tokens: Its tokens.
        constraint: The one constraint that an input of that role holds.
        starts: In a joined output: where each instruction's part begins.
        weight: Of an input, under the weightings uniform and fixed.
    """

    name: str
    role: str
    tokens: tuple[Token, ...]
    constraint: str | None = None
    starts: tuple[int, ...] = (0,)
    weight: float | None = None

    @property
    def kind(self) -> str:
        """The role in one word, for colours."""
        return self.role.split(" ")[0]

    @property
    def num_trained(self) -> int:
        """Tokens whose prediction enters the loss."""
        return sum(token.is_trained for token in self.tokens)

    @property
    def facts(self) -> str:
        """Its tokens, positions and weight, in a line."""
        first, last = self.tokens[0].position, self.tokens[-1].position
        facts = [f"{len(self.tokens):,} tokens", f"positions {first:,} to {last:,}"]
        facts += [f"{self.num_trained:,} trained"] if self.kind == "output" else []
        facts += [f"weight {self.weight:.3g}"] if self.weight is not None else []
        return ", ".join(facts)

    def runs(self) -> list["Run"]:
        """Returns the tokens in stretches that are trained or not, broken where another instruction begins."""
        starts = np.cumsum(np.isin(np.arange(len(self.tokens)), self.starts)).tolist()
        groups = groupby(zip(self.tokens, starts, strict=True), key=lambda pair: (pair[0].is_trained, pair[1]))
        return [Run(key[0], int(key[1]), tuple(token for token, _ in group)) for key, group in groups]


class Run(NamedTuple):
    """Neighbouring tokens of which all or none are trained; `instruction` counts from 1."""

    is_trained: bool
    instruction: int
    tokens: tuple[Token, ...]


class Block(NamedTuple):
    """A part of the attention matrix that is not empty: causal (a triangle) or whole."""

    queries: int
    keys: int
    is_causal: bool


@dataclass(frozen=True, slots=True)
class SampleView:
    """One encoded sample.

    Attributes:
        id: The sample's id.
        segments: The inputs, then the output.
        spans: Where they lie among the sample's tokens.
        note: What training does with it because of its length; None: nothing.
    """

    id: str
    segments: tuple[Segment, ...]
    spans: SampleSpans
    note: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs and the output."""
        return len(self.spans.whole)

    @property
    def num_trained(self) -> int:
        """Tokens whose prediction enters the loss."""
        return self.segments[-1].num_trained

    @property
    def longest_pair(self) -> int:
        """Tokens of the longest input and the output."""
        return max(map(len, self.spans.inputs)) + len(self.spans.output)

    @property
    def facts(self) -> str:
        """How long it is, and how much of it is trained, in a line."""
        number = len(self.spans.inputs)
        return (
            f"{number} input{'s' if number > 1 else ''}, {self.num_tokens:,} tokens, {self.num_trained:,} of them "
            f"trained ({self.num_trained / self.num_tokens:.0%}); longest input and output: {self.longest_pair:,}"
        )

    @property
    def segment_spans(self) -> tuple[Span, ...]:
        """The spans in the order of the segments."""
        return (*self.spans.inputs, self.spans.output)

    def attention(self) -> list[Block]:
        """Returns who attends to whom, by the numbers of segments.

        An input sees itself; the output sees every input whole, and itself.
        """
        output = len(self.spans.inputs)
        own = [Block(i, i, is_causal=True) for i in range(output + 1)]
        return own + [Block(output, i, is_causal=False) for i in range(output)]


@dataclass(frozen=True, slots=True)
class RowView:
    """A row of the dataset, or the rows of one chunk, as training will see them.

    Attributes:
        label: Why it is shown.
        rows: The dataset's rows: one, or those of a chunk.
        samples: What training makes of it: one sample, in mode flat one an input; none when it cannot be encoded.
        problem: Why it, or one of its samples, cannot be encoded.
    """

    label: str
    rows: tuple[Sample, ...]
    samples: tuple[SampleView, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> str:
        """The row's id, or that of the chunk."""
        first = self.rows[0]
        return first.id if len(self.rows) == 1 else f"chunk {first.chunk} of {len(self.rows)} rows"


def view_rows(rows: Sequence[Sample], reading: Reading, label: str) -> RowView:
    """Returns the view of a row, or of the rows of one chunk; a row that cannot be encoded gives the reason.

    Samples that training drops for their length are laid out whole, with the reason.

    Args:
        rows: The row, or those of one chunk.
        reading: How training reads it.
        label: Why it is shown.
    """
    try:
        kept, whole = reading.encode(rows), reading.encode_whole(rows)
    except DataError as error:  # training stops at such a row
        return RowView(label, tuple(rows), problem=str(error))
    problem = "; ".join(whole.left_out) or None
    reason = "; ".join(why for why in kept.left_out if why not in whole.left_out)
    by_id = {sample.id: sample for sample in kept.samples}
    views: list[SampleView] = []
    for sample in whole.samples:
        # The id of a chunk names its rows, and some of them may be cut off.
        fitted = kept.samples[0] if len(rows) > 1 and kept.samples else by_id.get(sample.id)
        views.append(_view_sample(fitted or sample, rows, reading, _note(sample, fitted, reason)))
    return RowView(label, tuple(rows), tuple(views), problem)


def _note(whole: EncodedSample, fitted: EncodedSample | None, reason: str) -> str | None:
    if fitted is None:
        return f"training drops this sample: {reason}"
    missing = len(whole.output) - len(fitted.output)
    return f"training cuts the last {missing:,} tokens of the output, to data.max_length" if missing else None


def _view_sample(encoded: EncodedSample, rows: Sequence[Sample], reading: Reading, note: str | None) -> SampleView:
    shown = reading.cut(encoded)
    row = build_row([shown], reading.positions, reading.shares if reading.weighting == "fixed" else None)
    spans = row.layout.samples[0]
    positions = row.position_ids[0].tolist()
    sources = _inputs_of(encoded, rows, reading)
    is_cut = len(shown.inputs) != len(encoded.inputs)
    segments: list[Segment] = []
    for i, (span, ids) in enumerate(zip(spans.inputs, shown.inputs, strict=True)):
        source = None if is_cut or i >= len(sources) else sources[i]
        role = source.role if source else f"chunk {i + 1} of {len(shown.inputs)}" if is_cut else "full"
        tokens = _tokens(ids.tolist(), positions[span.tokens], [False] * len(ids), reading)
        constraint = source.constraint if source else None
        segments.append(Segment(f"x{i + 1}", role, tokens, constraint, weight=_weight(spans, i, reading.weighting)))
    tokens = _tokens(shown.output.tolist(), positions[spans.output.tokens], shown.is_trained.tolist(), reading)
    segments.append(Segment("y", "output", tokens, starts=shown.starts))
    return SampleView(encoded.id, tuple(segments), spans, note)


def _tokens(ids: list[int], positions: list[int], flags: list[bool], reading: Reading) -> tuple[Token, ...]:
    tokenizer = reading.template.tokenizer
    special = special_ids(tokenizer)
    fields = zip(ids, token_texts(ids, tokenizer), positions, flags, (i in special for i in ids), strict=True)
    return tuple(Token(*values) for values in fields)


def _inputs_of(encoded: EncodedSample, rows: Sequence[Sample], reading: Reading) -> Sequence[SampleInput]:
    """Returns the inputs of a row as they were chosen for the sample; of a chunk, those of its first row."""
    chosen = [sample for row in rows for sample in select_inputs(row, reading.mode, reading.roles)]
    return next((sample.inputs for sample in chosen if sample.id == encoded.id), chosen[0].inputs)


def _weight(spans: SampleSpans, index: int, weighting: str) -> float | None:
    """Returns an input's share in the sum; None where it depends on the scores (fid, vanilla)."""
    if weighting not in ("uniform", "fixed"):
        return None
    return spans.weights[index] if spans.weights else 1 / len(spans.inputs)
