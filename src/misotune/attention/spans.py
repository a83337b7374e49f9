"""Where the inputs and outputs of a packed row lie: all that attention needs to know of a layout."""

from typing import NamedTuple, Protocol, runtime_checkable


class Span(NamedTuple):
    """A run of tokens in a packed row: `start` included, `stop` not."""

    start: int
    stop: int

    @property
    def tokens(self) -> slice:
        """The span as an index into the token axis."""
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


class SampleSpans(NamedTuple):
    """One sample of a packed row: its n inputs x_1..x_n, then its one output y, side by side.

    Attributes:
        inputs: The inputs.
        output: The output; while a sample is being decoded, the part that is known.
        weights: Score_i of each input under the weighting `fixed`, with sum 1; empty: 1/n each.
    """

    inputs: tuple[Span, ...]
    output: Span
    weights: tuple[float, ...] = ()

    @property
    def whole(self) -> Span:
        """The sample's tokens, from the first input's first to the output's last."""
        return Span(self.inputs[0].start, self.output.stop)


@runtime_checkable
class PackedLayout(Protocol):
    """Anything that says where the samples of a row lie; `misotune.layout.RowLayout` does."""

    @property
    def samples(self) -> tuple[SampleSpans, ...]:
        """The samples in the order of their tokens; together they cover the row."""
        ...
