"""Mixture of instructions: the rows of a chunk as one causal text, each row rendered as if it stood alone."""

from collections.abc import Sequence

import numpy as np

from misotune.errors import LayoutError
from misotune.layout.encoding import EncodedSample, TokenIds


def join_samples(samples: Sequence[EncodedSample], bos_token_id: int | None = None) -> EncodedSample:
    """Returns the samples of a chunk as one sample: their tokens in order, positions running on.

    The first row's prompt becomes the input and all the rest the output, so that every later row sees the
    earlier ones, and each response is trained as it is alone. A row's tokens are those that it has alone, but
    for BOS, which begins the text once.

    Args:
        samples: The rows of the chunk, in order; at least one.
        bos_token_id: The tokenizer's BOS token. None: it has none.

    Raises:
        LayoutError: A row has several inputs, which one causal text cannot hold.
    """
    for sample in samples:
        if len(sample.inputs) > 1:
            raise LayoutError(
                "a chunk joins rows of one input each to one text, and one of its rows has several inputs; "
                "set miso.mode=sft, or prepare the mixture with n_mix: 1"
            )
    first, *others = samples
    if not others:
        return first
    parts, flags, starts = [first.output], [first.is_trained], list(first.starts)
    at = len(first.output)
    for sample in others:
        prompt = _without_bos(sample, bos_token_id)
        starts += [at, *(at + len(prompt) + start for start in sample.starts[1:])]
        parts += [prompt, sample.output]
        flags += [np.zeros(len(prompt), dtype=bool), sample.is_trained]
        at += len(prompt) + len(sample.output)
    return EncodedSample(
        id="+".join(sample.id for sample in samples),
        inputs=first.inputs,
        output=np.concatenate(parts),
        is_trained=np.concatenate(flags),
        num_opening_tokens=first.num_opening_tokens,
        can_chunk=False,
        roles=first.roles,
        starts=tuple(starts),
        sources=tuple(source for sample in samples for source in sample.sources),
    )


def _without_bos(sample: EncodedSample, bos_token_id: int | None) -> TokenIds:
    prompt = sample.inputs[0]
    if bos_token_id is None or prompt[0] != bos_token_id:
        return prompt
    # Some ChatML tokenizers call the mark that opens every turn BOS: it opens the assistant's turn too.
    return prompt if sample.output[0] == bos_token_id else prompt[1:]
