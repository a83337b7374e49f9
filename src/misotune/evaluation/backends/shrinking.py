"""Greedy decoding in batches that shrink: rows whose response has ended are dropped.

`model.generate` keeps a batch whole until its longest response ends, and most of its rows compute for nothing. Here
the batch is as large as the number of responses that go on. The tokens are those that `generate` gives for each
prompt on its own, but for rounding.

New prompts do not take the places of ended rows. All rows of a batch share its width, so a young row would pay for
the attention of the oldest: with SmolLM2-135M's costs on two cores that took a quarter longer for all of IFEval.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from misotune.attention.steered import steered_attention
from misotune.attention.steering import SteerArguments, SteeredPrompts, grown

# Tokens for which a buffer of keys has room to spare when it is made.
_SPARE = 64
# Ended rows are dropped when they are this share of the batch: dropping copies the keys of all others.
_DROP_SHARE = 1 / 8


@dataclass(slots=True)
class Row:
    """A prompt and its response so far, the id that ends it included."""

    index: int
    prompt: Sequence[int]
    new_ids: list[int] = field(default_factory=list[int])
    is_ended: bool = False

    @property
    def num_cached(self) -> int:
        """Tokens whose keys are known: all but the last, which the next step reads."""
        return len(self.prompt) + len(self.new_ids) - 1


def can_shrink(model: Any) -> bool:
    """Returns whether all that a model remembers is keys and values, of which rows can be taken."""
    config = model.config.get_text_config()
    layers = DynamicCache(config=config).layers
    is_plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return is_plain and not getattr(config, "num_kv_shared_layers", 0)


def decode_shrinking(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    steered: SteeredPrompts | None = None,
) -> Iterator[tuple[int, list[Row]]]:
    """Yields after each step of one batch the number of its new tokens and the rows that ended with it.

    Args:
        model: One that `can_shrink`.
        prompts: Token ids; all are computed at once.
        max_new_tokens: The longest response.
        eos_ids: Each ends a response.
        steered: Which tokens of the prompts are the user's, and how the model is steered by them; None: it is not.
    """
    steer = None if steered is None else _Steer(steered, model.device)
    with nullcontext() if steered is None else steered_attention(model, steered.steering):
        yield from _decode(
            model, [Row(index, prompt) for index, prompt in enumerate(prompts)], max_new_tokens, eos_ids, steer
        )


def _decode(
    model: Any, rows: list[Row], max_new_tokens: int, eos_ids: Sequence[int], steer: "_Steer | None"
) -> Iterator[tuple[int, list[Row]]]:
    cache = _prefilled(model, rows, steer)
    while live := [i for i, row in enumerate(rows) if not row.is_ended]:
        if len(rows) - len(live) >= max(1, int(_DROP_SHARE * len(rows))):
            rows = [rows[i] for i in live]
            cache = _taken(cache, live, max(row.num_cached for row in rows))
        ended: list[Row] = []
        for row, token in zip(rows, _step(model, rows, cache, steer), strict=True):
            if not row.is_ended:
                row.new_ids.append(token)
                row.is_ended = token in eos_ids or len(row.new_ids) == max_new_tokens
                if row.is_ended:
                    ended.append(row)
        yield len(live), ended


@torch.inference_mode()
def _prefilled(model: Any, rows: Sequence[Row], steer: "_Steer | None") -> Cache:
    """Returns the keys of prompts without their last token, padded on the left."""
    cache = DynamicCache()
    width = max(1, *(row.num_cached for row in rows))
    ids = [[0] * (width - row.num_cached) + list(row.prompt[:-1]) for row in rows]
    mask = torch.tensor([[0] * (width - row.num_cached) + [1] * row.num_cached for row in rows])
    has_choice = "logits_to_keep" in inspect.signature(model.forward).parameters
    model(
        torch.tensor(ids, device=model.device),
        attention_mask=mask.to(model.device),
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(model.device),
        past_key_values=cache,
        use_cache=True,
        **({"logits_to_keep": 1} if has_choice else {}),
        **(steer.tell(rows, width, -1) if steer else {}),
    )
    return _taken(cache, list(range(len(rows))), width)


@torch.inference_mode()
def _step(model: Any, rows: Sequence[Row], cache: Cache, steer: "_Steer | None") -> list[int]:
    """Returns the next id of each row; every row ends at the last column."""
    num_columns = cache.get_seq_length() + 1
    num_tokens = torch.tensor([[row.num_cached + 1] for row in rows])
    last_ids = torch.tensor([[row.new_ids[-1] if row.new_ids else row.prompt[-1]] for row in rows])
    logits = model(
        last_ids.to(model.device),
        attention_mask=(torch.arange(num_columns) >= num_columns - num_tokens).long().to(model.device),
        position_ids=(num_tokens - 1).to(model.device),
        past_key_values=cache,
        use_cache=True,
        **(steer.tell(rows, num_columns, max(len(row.new_ids) for row in rows)) if steer else {}),
    ).logits
    return logits[:, -1].float().argmax(-1).tolist()


class _Steer:
    """Tells each forward call which keys are the user's: all rows of a batch are as far behind their prompts."""

    def __init__(self, prompts: SteeredPrompts, device: torch.device) -> None:
        self._steering = prompts.steering
        self._is_user = prompts.is_user(device)

    def tell(self, rows: Sequence[Row], num_columns: int, num_new: int) -> dict[str, SteerArguments]:
        is_user = grown(self._is_user[[row.index for row in rows]], num_columns, num_new)
        return {"steer": SteerArguments.of(self._steering, is_user)}


@torch.inference_mode()
def _taken(cache: Cache, indices: list[int], num_columns: int) -> Cache:
    """Returns a cache of these rows and of the last columns."""
    layers: list[Any] = cache.layers
    return Cache(layers=[_RoomyLayer(layer.keys, layer.values, indices, num_columns) for layer in layers])


class _RoomyLayer(DynamicLayer):
    """Keys and values at the front of larger buffers: the stock layer copies all of them for each new token."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, indices: list[int], num_columns: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._key_buffer, self._value_buffer = (
            _with_room(states[indices, :, states.shape[-2] - num_columns :]) for states in (keys, values)
        )
        self._show(num_columns)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends a token's keys and values, and returns all."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._key_buffer.shape[-2]:
            self._key_buffer, self._value_buffer = _with_room(self.keys), _with_room(self.values)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def _show(self, num_columns: int) -> None:
        self.keys, self.values = self._key_buffer[:, :, :num_columns], self._value_buffer[:, :, :num_columns]


def _with_room(states: Tensor) -> Tensor:
    num_rows, num_heads, num_columns, size = states.shape
    buffer = states.new_empty(num_rows, num_heads, num_columns + _SPARE, size)
    buffer[:, :, :num_columns] = states
    return buffer
