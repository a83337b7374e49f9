"""The context-dependency score of a response, measured inside a stock model.

The score ("On the Loss of Context-awareness", arXiv 2411.02688, section 3.1): the mean over the response's tokens of
the largest head's attention to all user tokens so far, at one middle layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from misotune.analysis.observed_model import observed_attention
from misotune.attention.steering import parse_numbers
from misotune.errors import UnsupportedModelError, UsageError

OBSERVED_NAME = "dependency-observed"

# The paper measures TinyLlama, of 22 layers, at layer 15.
_DEPTH = 15 / 22
# Attention weights in memory at once: 16 MiB in float32, however long the row is.
_BLOCK_WEIGHTS = 2**22


def middle_layer(num_layers: int) -> int:
    """Returns the layer that scores are measured at unless another is named, counted from 1.

    >>> middle_layer(22), middle_layer(30), middle_layer(1)
    (15, 20, 1)
    """
    return max(1, round(_DEPTH * num_layers))


def parse_layers(text: str | None, num_layers: int) -> tuple[int, ...]:
    """Returns the layers that are meant, counted from 1, in their order.

    >>> parse_layers("2,8-10", 12), parse_layers("all", 3), parse_layers(None, 22)
    ((2, 8, 9, 10), (1, 2, 3), (15,))

    Args:
        text: Numbers and ranges with commas between them, or `all`; None: the middle layer.
        num_layers: Of the model.

    Raises:
        UsageError: It is neither, or the model has no such layer.
    """
    if text is None:
        return (middle_layer(num_layers),)
    if text == "all":
        return tuple(range(1, num_layers + 1))
    numbers = parse_numbers(text, "--layers")
    if numbers[-1] > num_layers:
        raise UsageError(f"--layers {text}: the model has layers 1 to {num_layers}")
    return numbers


def dependency_scores(shares: Float[Tensor, "L H Y"], responses: Sequence[slice]) -> list[Float[Tensor, " L"]]:
    """Returns each response's score at every layer: the mean over tokens of the largest head's share.

    Args:
        shares: What `user_shares` found, for the tokens of all responses.
        responses: Which of the Y tokens are a response's.
    """
    largest = shares.amax(dim=1)
    return [largest[:, tokens].mean(dim=1) for tokens in responses]


@torch.inference_mode()
def user_shares(
    model: Any,
    ids: Sequence[int],
    is_user: Bool[Tensor, " T"],
    queries: Int[Tensor, " Y"],
    layers: Sequence[int],
) -> Float[Tensor, "L H Y"]:
    """Returns the share of attention that tokens of a row pay to the user's tokens before them, by layer and head.

    The weights are the stock model's own, computed for a block of tokens at a time. Besides what the model itself
    needs, memory grows with T alone.

    Args:
        model: A causal language model, loaded with any attention: H heads.
        ids: The row, T tokens.
        is_user: Which of them are the user's.
        queries: The tokens to look at, by their places in the row.
        layers: The layers to look at, counted from 1, L of them.

    Raises:
        UnsupportedModelError: The model's attention cannot be observed.
    """
    watch = _Watch(is_user.to(model.device), queries.to(model.device), frozenset(layers))
    row = torch.tensor([list(ids)], device=model.device)
    with observed_attention(model, OBSERVED_NAME, _watched_forward(watch), masks_of="sdpa"), suppress(_AllSeenError):
        model(row, use_cache=False, logits_to_keep=1)
    if watch.shares.keys() != watch.layers:
        raise UnsupportedModelError(f"{_CANNOT} {model.config.model_type}: {_NOT_THROUGH}")
    return torch.stack([watch.shares[layer] for layer in layers])


_CANNOT = "attention cannot be observed inside"
_NOT_THROUGH = "not all of its layers take it from transformers' AttentionInterface; name others with --layers"


class _AllSeenError(Exception):
    """Leaves the model once the last layer to look at has been seen: those above it would compute for nothing."""


@dataclass(frozen=True, slots=True)
class _Watch:
    """What to look at in a forward call, and what was seen: shares (H, Y) by layer."""

    is_user: Tensor
    queries: Tensor
    layers: frozenset[int]
    shares: dict[int, Tensor] = field(default_factory=dict[int, Tensor])


def _watched_forward(watch: _Watch) -> Callable[..., tuple[Tensor, None]]:
    """Returns sdpa attention as transformers calls it, query (1, H, T, D), that notes the shares of its layer."""
    stock = AttentionInterface()["sdpa"]

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        if options.get("s_aux") is not None:
            raise UnsupportedModelError(f"{_CANNOT} this model: its attention sinks take part in each softmax")
        scaling, softcap = options.get("scaling"), options.get("softcap")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = _Scores(query[0], key[0], attention_mask, scale, softcap)
        layer = int(getattr(module, "layer_idx", -1)) + 1
        if layer in watch.layers:
            watch.shares[layer] = scores.shares(watch.is_user, watch.queries).cpu()
            if watch.shares.keys() == watch.layers:
                raise _AllSeenError
        if softcap is None:
            return stock(module, query, key, value, attention_mask, **options)
        return scores.attended(value[0]).to(query.dtype), None  # stock sdpa leaves caps out in silence

    return forward


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores of a layer's queries (H, T, D) and keys (K, T, D), as its softmax takes them."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    softcap: float | None

    @property
    def dtype(self) -> torch.dtype:
        """What weights are computed in, whatever the model's type: float32 at least."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def shares(self, is_user: Bool[Tensor, " T"], rows: Int[Tensor, " Y"]) -> Float[Tensor, "H Y"]:
        """Returns what these queries pay to the user's tokens."""
        return self._products(is_user[:, None].to(self.dtype), rows)[..., 0]

    def attended(self, value: Float[Tensor, "K T D"]) -> Float[Tensor, "1 T H D"]:
        """Returns the attention result of all queries."""
        values = value.to(self.dtype).repeat_interleave(self.query.shape[0] // value.shape[0], dim=0)
        rows = torch.arange(self.query.shape[1], device=value.device)
        return self._products(values, rows).transpose(0, 1)[None].contiguous()

    def _products(self, values: Tensor, rows: Int[Tensor, " Y"]) -> Float[Tensor, "H Y D"]:
        """Returns weights times values (T, D) or (H, T, D)."""
        # Made first: results kept between blocks would hold the heap apart, and it would grow with T squared.
        found = values.new_empty(self.query.shape[0], len(rows), values.shape[-1])
        start = 0
        for weights in self.weights(rows):
            stop = start + weights.shape[1]
            found[:, start:stop] = weights @ values
            start = stop
        return found

    def weights(self, rows: Int[Tensor, " Y"]) -> Iterator[Float[Tensor, "H y T"]]:
        """Yields the attention weights of these queries, a block of them at a time."""
        num_heads, num_tokens = self.query.shape[0], self.key.shape[1]
        keys = self.key.to(self.dtype).repeat_interleave(num_heads // self.key.shape[0], dim=0).mT
        places = torch.arange(num_tokens, device=rows.device)
        for block in rows.split(max(1, _BLOCK_WEIGHTS // (num_heads * num_tokens))):
            scores = self.query[:, block].to(self.dtype) @ keys * self.scale
            if self.softcap is not None:
                scores = self.softcap * torch.tanh(scores / self.softcap)
            if self.mask is None:
                scores = scores.masked_fill(places > block[:, None], -torch.inf)
            elif self.mask.dtype == torch.bool:
                scores = scores.masked_fill(~self.mask[0, :, block], -torch.inf)
            else:
                scores = scores + self.mask[0, :, block]
            yield scores.softmax(dim=-1)
