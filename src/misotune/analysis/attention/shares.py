"""What share of a response's attention goes to each part of the conversation, in every layer and head.

The model runs with MISO attention beside one input, which is plain causal attention, under the name `SHARES_NAME`. As a
layer runs, the softmax of its response's queries is computed once more, a block of queries at a time, and summed up by
part: no attention matrix is kept, and memory grows with the length of the row, not with its square.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from misotune.analysis.attention.parts import RESPONSE, PartedRow
from misotune.analysis.observed_model import observed_attention
from misotune.attention import ATTENTION_NAME, MisoArguments
from misotune.decoding import generate
from misotune.layout import build_row

SHARES_NAME = "miso-shares"

# Scores computed at once, of all heads together: 16 MiB in float32.
_SCORES_AT_ONCE = 1 << 22

# The defaults of transformers, in place of the sampling and the penalties that a model's own settings may bring.
_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}


@dataclass(slots=True)
class _Noted:
    """What the layers are told, and what they leave."""

    parts: Int[Tensor, "S"]
    num_parts: int
    num_queries: int
    layers: list[Tensor] = field(default_factory=list[Tensor])


def part_shares(model: Any, row: PartedRow) -> Float[Tensor, "L H P"]:
    """Returns the share of attention that goes to each part, a mean over the response's tokens, in float64.

    The queries are those of the response's tokens, the one that ends it included; the shares of a head sum to 1.

    Args:
        model: A causal language model, loaded with any attention: L layers, H heads.
        row: A row with its parts; P are its `num_parts`.
    """
    packed = build_row([row.encoded])
    parts = torch.as_tensor(row.parts, device=model.device)
    noted = _Noted(parts, row.num_parts, int((row.parts == RESPONSE).sum()))
    with torch.inference_mode(), observed_attention(model, SHARES_NAME, _noting_forward):
        model(
            packed.input_ids.to(model.device),
            position_ids=packed.position_ids.to(model.device),
            miso=MisoArguments(packed.layout),
            noted=noted,
            use_cache=False,
            logits_to_keep=1,
        )
    return torch.stack(noted.layers)


def block_shares(
    q: Float[Tensor, "Y H D"],
    k: Float[Tensor, "S K D"],
    parts: Int[Tensor, "S"],
    num_parts: int,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    scores_at_once: int = _SCORES_AT_ONCE,
) -> Float[Tensor, "H P"]:
    """Returns the mean over queries of softmax(q k^T * scale), summed by part of the keys; causal.

    Args:
        q: Queries of the last Y of S tokens.
        k: Keys; heads in groups, as in grouped-query attention.
        parts: The part of each key, below `num_parts`.
        num_parts: P.
        scale: Of the scores.
        window: A query reads so many keys at most, the last its own; None: all.
        softcap: Of the scores, or None.
        scores_at_once: Bounds the memory: scores of one block of queries, all heads together.
    """
    (num_queries, num_heads, _), (num_keys, num_groups, _) = q.shape, k.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    keys = k.to(wide).permute(1, 2, 0)[:, None]  # K 1 D S
    members = functional.one_hot(parts, num_parts).to(wide)  # S P
    at_key = torch.arange(num_keys, device=q.device)
    total = torch.zeros(num_heads, num_parts, dtype=torch.float64)
    size = max(1, scores_at_once // (num_heads * num_keys))
    for start in range(0, num_queries, size):
        block = q[start : start + size].to(wide).unflatten(1, (num_groups, -1)).permute(1, 2, 0, 3)  # K G b D
        scores = (block @ keys).mul_(scale)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        at_query = torch.arange(block.shape[2], device=q.device)[:, None] + (num_keys - num_queries + start)
        hidden = at_key > at_query
        if window is not None:
            hidden |= at_key <= at_query - window
        weights = scores.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
        total += (weights @ members).sum(dim=2).flatten(0, 1).cpu().double()
    return total / num_queries


def write_response(model: Any, tokenizer: Any, row: Any, max_new_tokens: int) -> tuple[str, tuple[int, ...]]:
    """Returns the model's greedy response to chat messages, as text and as token ids.

    Args:
        model: A causal language model, loaded with any attention.
        tokenizer: Its tokenizer, with a chat template.
        row: Chat messages that end with the user's.
        max_new_tokens: Longest response in tokens.

    Raises:
        RunError: Prompt and response do not fit the model's context.
    """
    made = generate(model, tokenizer, [list(row)], max_new_tokens=max_new_tokens, **_GREEDY)
    return made.text, made.token_ids


def _noting_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    noted: _Noted,
    **options: Any,
) -> tuple[Tensor, None]:
    """MISO attention as transformers calls it, query (1, H, T, D), that leaves the layer's shares."""
    q, k = query[0].transpose(0, 1), key[0].transpose(0, 1)
    scaling = options.get("scaling")
    noted.layers.append(
        block_shares(
            q[-noted.num_queries :],
            k,
            noted.parts,
            noted.num_parts,
            float(q.shape[-1] ** -0.5) if scaling is None else scaling,
            window=options.get("sliding_window"),
            softcap=options.get("softcap"),
        )
    )
    return AttentionInterface()[ATTENTION_NAME](module, query, key, value, attention_mask, **options)
