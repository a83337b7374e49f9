"""Steered attention in stock transformers models: what `misotune.attention.steering` defines, for a padded batch.

The per-call facts travel as a keyword argument of `model.forward`, which transformers hands to the attention function:

    with steered_attention(model, steering):
        model(input_ids, attention_mask=..., steer=SteerArguments.of(steering, is_user))
"""

# transformers' own functions are typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from misotune.attention.model import has_sinks
from misotune.attention.steering import SteerArguments, Steering, check_numbers, grown
from misotune.attention.switching import attention_of
from misotune.errors import UnsupportedModelError

STEERED_NAME = "steered"

# Scores, or a mask of their size, in memory at once: 256 MiB in float32, however large the batch is.
_SCORES_AT_ONCE = 2**26
# What is added to the scores of a layer that is not steered.
_NOTHING = torch.zeros(1, 1, 1, 1)
_CANNOT = "cannot be steered"


def register_steered() -> None:
    """Makes `attn_implementation="steered"` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(STEERED_NAME, _steered_forward)
    # Where it leaves the mask out, all keys up to the query's own are read: `_steered_forward` sees to that.
    stock: Any = AttentionMaskInterface()["sdpa"]
    AttentionMaskInterface.register(STEERED_NAME, stock)


def check_steering(config: PretrainedConfig, steering: Steering) -> None:
    """Refuses a model that cannot be steered, and layers and heads that it has not.

    Raises:
        UnsupportedModelError: Its attention has sinks, which are neither the user's tokens nor others.
        UsageError: It has no such layers or heads.
    """
    text = config.get_text_config(decoder=True)
    if has_sinks(config):
        raise UnsupportedModelError(f"{text.model_type} {_CANNOT}: its attention sinks take part in each softmax")
    check_numbers(steering, text.num_hidden_layers, text.num_attention_heads)


@contextmanager
def steered_attention(model: Any, steering: Steering) -> Generator[None]:
    """Runs a model with steered attention, and gives it its own back; each forward call needs `steer`.

    Raises:
        UnsupportedModelError: The model cannot be steered.
        UsageError: It has no such layers or heads.
    """
    register_steered()
    check_steering(model.config, steering)
    with attention_of(model, STEERED_NAME, "be steered"):
        yield


@contextmanager
def steered_generation(model: Any, steering: Steering, is_user: Bool[Tensor, "B S"]) -> Generator[None]:
    """Steers all that `model.generate` computes for a batch; prompts are padded on the left, B rows of S columns.

    Raises:
        UnsupportedModelError: The model cannot be steered.
        UsageError: It has no such layers or heads.
    """

    def tell(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        num_columns = kwargs["attention_mask"].shape[1]
        flags = grown(is_user, num_columns, num_columns - is_user.shape[1])
        return args, {**kwargs, "steer": SteerArguments.of(steering, flags)}

    with steered_attention(model, steering):
        handle = model.register_forward_pre_hook(tell, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _steered_forward(
    module: nn.Module,
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S E"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    steer: SteerArguments | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "B T H E"], None]:
    """The attention function as transformers calls it."""
    if steer is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} {_CANNOT}: its model does not hand keyword arguments to attention"
        )
    if options.get("s_aux") is not None or options.get("position_bias") is not None or dropout:
        raise UnsupportedModelError(
            f"{type(module).__name__} {_CANNOT}: its attention has sinks, position biases or dropout"
        )
    scale = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    stock: Any = AttentionInterface()["sdpa"]
    is_reached = steer.steering.reaches(int(getattr(module, "layer_idx", -1)))
    if not is_reached and softcap is None:
        return stock(module, query, key, value, attention_mask, scaling=scale, **options)
    log_factors = _by_head(steer, query.shape[1], key.shape[2]) if is_reached else _NOTHING
    log_factors = log_factors.to(query.device, torch.promote_types(query.dtype, torch.float32))
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    out = torch.empty(
        len(query), query.shape[2], query.shape[1], value.shape[-1], dtype=value.dtype, device=query.device
    )
    num_held = query.shape[1] if softcap is not None else log_factors.shape[1]
    for rows, tokens in _tiles(query, key, num_held):
        q, k, v = query[rows, :, tokens], key[rows], value[rows]
        if attention_mask is not None:
            mask = attention_mask.expand(len(query), *attention_mask.shape[1:])[rows, :, tokens]
        elif is_causal:
            mask = _causal_mask(query.shape[2], key.shape[2], tokens, sliding_window, query.device)
        else:
            mask = None
        added = _masked(log_factors[rows] if len(log_factors) > 1 else log_factors, mask)
        if softcap is not None:
            out[rows, tokens] = _attend(q, k, v, added, scale, softcap)
        else:
            bias = added.clamp(min=torch.finfo(q.dtype).min).to(q.dtype).expand(len(q), -1, q.shape[2], -1)
            out[rows, tokens] = stock(module, q, k, v, bias, scaling=scale)[0]
    return out, None


def _by_head(steer: SteerArguments, num_heads: int, num_keys: int) -> Float[Tensor, "B H 1 S"]:
    """Returns what is added to the scores of the last keys; one head stands for all where they are alike."""
    # A sliding layer's cache keeps the last keys alone.
    found = steer.log_factors[:, None, None, steer.log_factors.shape[1] - num_keys :]
    if steer.steering.heads is None:
        return found
    return found * steer.steering.reaches_heads(num_heads, found.device)[None, :, None, None]


def _tiles(query: Tensor, key: Tensor, num_heads: int) -> Iterator[tuple[slice, slice]]:
    """Yields rows of the batch and tokens so few that what is held of their scores fits."""
    num_rows, num_tokens, num_keys = query.shape[0], query.shape[2], key.shape[2]
    rows_at_once = max(1, _SCORES_AT_ONCE // (num_heads * num_tokens * num_keys))
    tokens_at_once = max(1, min(num_tokens, _SCORES_AT_ONCE // (num_heads * num_keys)))
    for row in range(0, num_rows, rows_at_once):
        for token in range(0, num_tokens, tokens_at_once):
            yield slice(row, row + rows_at_once), slice(token, min(token + tokens_at_once, num_tokens))


def _causal_mask(
    num_tokens: int, num_keys: int, tokens: slice, window: int | None, device: torch.device
) -> Bool[Tensor, "1 1 T S"]:
    """Returns which keys some queries read; the last of all queries stands beside the last key."""
    query = torch.arange(tokens.start, tokens.stop, device=device)[:, None] + num_keys - num_tokens
    key = torch.arange(num_keys, device=device)[None]
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    return seen[None, None]


def _masked(log_factors: Tensor, mask: Tensor | None) -> Tensor:
    """Returns what is added to the scores; no tensor that comes from outside is written to."""
    if mask is None:
        return log_factors
    if mask.dtype == torch.bool:
        # A row that sees nothing is padding: the lowest number, unlike -inf, gives it some result and no NaN.
        return log_factors.masked_fill(~mask, torch.finfo(log_factors.dtype).min)
    return log_factors + mask


def _attend(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S E"],
    added: Float[Tensor, "#B #H T S"],
    scale: float,
    softcap: float,
) -> Float[Tensor, "B T H E"]:
    """Returns softmax(softcap(scores) + added) v; query head h reads key head h // (H / K)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    shape = len(q), k.shape[1], -1, q.shape[2]
    grouped, keys, values = q.reshape(*shape, q.shape[3]).to(dtype), k.to(dtype), v.to(dtype)
    scores = torch.einsum("bkgtd,bksd->bkgts", grouped, keys).flatten(1, 2) * scale
    weights = (softcap * torch.tanh(scores / softcap) + added).softmax(dim=-1)
    return torch.einsum("bkgts,bksd->btkgd", weights.view(*shape, k.shape[2]), values).flatten(2, 3).to(v.dtype)
