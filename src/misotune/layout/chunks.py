"""Succ: one input cut into successive chunks (the paper's section 4.2)."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from misotune.layout.encoding import EncodedSample, TokenIds

ChunkPrefix = Literal["none", "bos", "system"]


@dataclass(frozen=True, slots=True)
class Chunking:
    """How inputs are cut.

    Attributes:
        probabilities: Probability of each number of chunks; they sum to 1.
        seed: The run's seed.
        prefix: What the second and later chunks begin with. The paper is silent; without anything there, a
            chunk has no attention sink.
        bos_token_id: Needed for the prefix `bos`.
    """

    probabilities: Mapping[int, float]
    seed: int
    prefix: ChunkPrefix = "none"
    bos_token_id: int | None = None

    def cut(self, sample: EncodedSample, epoch: int) -> EncodedSample:
        """Returns the sample with its input in near-equal chunks, as many as drawn for this row and epoch."""
        if not sample.can_chunk:
            return sample
        ids = sample.inputs[0]
        number = draw_chunks(self.probabilities, self.seed, epoch, sample.id)
        first, *others = np.array_split(ids, min(number, len(ids)))
        head = self._prefix_ids(sample)
        return replace(sample, inputs=(first, *(np.concatenate([head, chunk]) for chunk in others)))

    def room(self, sample: EncodedSample) -> int:
        """Returns the most tokens that prefixes may add to the sample."""
        if not sample.can_chunk:
            return 0
        return len(self._prefix_ids(sample)) * (max(self.probabilities) - 1)

    def _prefix_ids(self, sample: EncodedSample) -> TokenIds:
        if self.prefix == "system":
            return sample.inputs[0][: sample.num_opening_tokens]
        if self.prefix == "bos":
            return np.array([self.bos_token_id], dtype=np.int32)
        return np.array([], dtype=np.int32)


def draw_chunks(probabilities: Mapping[int, float], seed: int, epoch: int, sample_id: str) -> int:
    """Returns the number of chunks of a row: a pure function of (seed, epoch, row id), so that runs resume.

    Args:
        probabilities: Probability of each number of chunks.
        seed: The run's seed.
        epoch: The epoch, from 0.
        sample_id: The row's id.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{sample_id}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    for number, probability in sorted(probabilities.items()):
        draw -= probability
        if draw < 0:
            return number
    return max(probabilities)
