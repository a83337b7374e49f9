"""How training reads rows: its mode, positions and weighting, and its own encoding, handed in."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from misotune.layout import ChatTemplate, Chunking, EncodedSample
from misotune.layout.row import Positions
from misotune.samples import Mode, Sample

EPOCH = 0
"""Chunks are drawn per epoch; those of the first are shown."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What training makes of a row, or of the rows of one chunk.

    Attributes:
        samples: The samples that it keeps; chunks of succ not cut yet.
        left_out: Why others are left out, each with how many, and the first one's id.
        num_cut: Samples whose output was cut to the limit.
    """

    samples: Sequence[EncodedSample]
    left_out: Mapping[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    num_cut: int = 0


Encode = Callable[[Sequence[Sample]], Encoded]


@dataclass(frozen=True, slots=True)
class Reading:
    """How training reads rows; the encoding itself is training's own, and handed in.

    Attributes:
        template: The model's chat template.
        mode: How inputs are chosen from a row.
        roles: For para and flat, the roles to include.
        positions: How positions count.
        encode: Encodes a row, or the rows of one chunk, within the limits on lengths.
        encode_whole: The same without limits, for rows that are over them.
        weighting: How the attention outputs of the inputs are fused.
        shares: Of roles, for the weighting `fixed`.
        chunking: For succ, how inputs are cut.
    """

    template: ChatTemplate
    mode: Mode
    roles: Collection[str]
    positions: Positions
    encode: Encode
    encode_whole: Encode
    weighting: str = "uniform"
    shares: Mapping[str, float] | None = None
    chunking: Chunking | None = None

    def cut(self, sample: EncodedSample) -> EncodedSample:
        """Returns the sample with its input in chunks, where the mode cuts it."""
        return self.chunking.cut(sample, EPOCH) if self.chunking else sample
