"""What a model writes under each weighting as the number of inputs grows, and how fluent it is (appendix A, table 4).

Fluency is judged by two numbers that need no other model: the perplexity of the continuation for the same model
beside one input, as in plain decoding, and the share of repeated 4-grams. A text that falls apart has a high
perplexity; one that runs in circles has a low one, and many repetitions.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import exp
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from misotune.analysis.dilution.shares import MEASURED
from misotune.analysis.rows import AnalysedRow
from misotune.decoding import generate
from misotune.layout import EncodedSample, build_row

PLAIN = "plain"
"""In place of a weighting: with one input there is nothing to weigh."""
RESPONSE = "response"
"""In place of a weighting: the row's own response, the yardstick."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """One text and its fluency.

    Attributes:
        row: The row's id.
        num_inputs: n; 0 for the row's own response.
        weighting: How the n inputs were fused, or `PLAIN`, or `RESPONSE`.
        text: The text, without special tokens.
        num_tokens: Its tokens, with the one that ended it.
        is_cut: It was cut before it ended.
        nll: Mean negative log-likelihood of its tokens beside the row's first input alone, in nats.
        repeated_4grams: Share of its 4-grams that stood in it before, 0 to 1.
    """

    row: str
    num_inputs: int
    weighting: str
    text: str
    num_tokens: int
    is_cut: bool
    nll: float
    repeated_4grams: float


@dataclass(frozen=True, slots=True)
class Fluency:
    """The texts of all rows under one weighting and number of inputs, together.

    Attributes:
        num_inputs: n.
        weighting: As in `Continuation`.
        perplexity: Over all tokens of all rows.
        repeated_4grams: Mean over rows.
        num_tokens: Mean over rows.
        num_cut: Texts that were cut before they ended.
    """

    num_inputs: int
    weighting: str
    perplexity: float
    repeated_4grams: float
    num_tokens: float
    num_cut: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return asdict(self)


def continue_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[AnalysedRow],
    counts: Sequence[int],
    *,
    max_new_tokens: int,
    is_repeated: bool = False,
    on_text: Callable[[Continuation], None] = lambda _: None,
) -> list[Continuation]:
    """Returns, row by row, the response cut to the same length, then the greedy text for each n and weighting.

    Args:
        model: A causal language model, loaded with any attention.
        tokenizer: Its tokenizer, with a chat template.
        rows: The rows.
        counts: Numbers of inputs, ascending from 1.
        max_new_tokens: Longest text in tokens.
        is_repeated: n times the row's first input, instead of n of its inputs.
        on_text: Called with each text.
    """
    found: list[Continuation] = []
    with _greedy(model):
        for row in rows:
            for text in _texts_of(model, tokenizer, row, counts, max_new_tokens, is_repeated):
                found.append(text)
                on_text(text)
    return found


def fluency(texts: Sequence[Continuation]) -> list[Fluency]:
    """Returns one entry for each n and weighting, in the order of the texts."""
    groups: dict[tuple[int, str], list[Continuation]] = {}
    for text in texts:
        groups.setdefault((text.num_inputs, text.weighting), []).append(text)
    return [_fluency(members) for members in groups.values()]


def repeated_4grams(tokens: Sequence[Hashable]) -> float:
    """Returns the share of 4-grams (of token ids, of words) that stood in the text before; 0 for a text without any.

    >>> repeated_4grams([1, 2, 3, 4, 1, 2, 3, 4])  # five, of which the last repeats the first
    0.2
    """
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def _texts_of(
    model: Any, tokenizer: Any, row: AnalysedRow, counts: Sequence[int], max_new_tokens: int, is_repeated: bool
) -> Iterator[Continuation]:
    own = row.encoded.output[row.encoded.is_trained]
    yield _judge(model, tokenizer, row, 0, RESPONSE, own[:max_new_tokens].tolist(), len(own) > max_new_tokens)
    for n in counts:
        chosen = row.with_inputs(n, is_repeated=is_repeated).sample
        for weighting in MEASURED if n > 1 else MEASURED[:1]:
            made = generate(
                model,
                tokenizer,
                [list(x.messages) for x in chosen.inputs],
                weighting=weighting,
                max_new_tokens=max_new_tokens,
            )
            yield _judge(model, tokenizer, row, n, weighting if n > 1 else PLAIN, made.token_ids, made.is_cut)


def _judge(
    model: Any,
    tokenizer: Any,
    row: AnalysedRow,
    num_inputs: int,
    weighting: str,
    token_ids: Sequence[int],
    is_cut: bool,
) -> Continuation:
    special = set(tokenizer.all_special_ids)
    return Continuation(
        row=row.sample.id,
        num_inputs=num_inputs,
        weighting=weighting,
        text=tokenizer.decode(token_ids, skip_special_tokens=True),
        num_tokens=len(token_ids),
        is_cut=is_cut,
        nll=_nll_beside_one_input(model, row.encoded, token_ids),
        repeated_4grams=repeated_4grams([i for i in token_ids if i not in special]),
    )


def _nll_beside_one_input(model: Any, sample: EncodedSample, token_ids: Sequence[int]) -> float:
    opening = sample.output[: int(np.argmax(sample.is_trained))]
    output = np.concatenate([opening, np.asarray(token_ids, dtype=opening.dtype)])
    flags = np.arange(len(output)) >= len(opening)
    row = build_row([replace(sample, inputs=sample.inputs[:1], output=output, is_trained=flags)])
    ids, kept = row.input_ids.to(model.device), row.predictors.to(model.device)
    with torch.inference_mode():
        logits = model(ids, use_cache=False, logits_to_keep=kept).logits[0]
        return torch.nn.functional.cross_entropy(logits.float(), row.targets.to(model.device)).item()


@contextmanager
def _greedy(model: Any) -> Iterator[None]:
    """Leaves out the sampling and the penalties that a model's own settings may bring."""
    usual = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=usual.eos_token_id, pad_token_id=usual.pad_token_id)
    try:
        yield
    finally:
        model.generation_config = usual


def _fluency(texts: Sequence[Continuation]) -> Fluency:
    num_tokens = sum(text.num_tokens for text in texts)
    return Fluency(
        num_inputs=texts[0].num_inputs,
        weighting=texts[0].weighting,
        perplexity=exp(sum(text.nll * text.num_tokens for text in texts) / num_tokens),
        repeated_4grams=sum(text.repeated_4grams for text in texts) / len(texts),
        num_tokens=num_tokens / len(texts),
        num_cut=sum(text.is_cut for text in texts),
    )
