"""MISO attention in transformers models: the one file that knows `AttentionInterface`.

A model loaded with `attn_implementation=ATTENTION_NAME` is any stock model; the row's layout travels as a
keyword argument of `model.forward`, which transformers hands unchanged to the attention function:

    model(input_ids, position_ids=..., miso=MisoArguments(layout), use_cache=False)
"""

# transformers' own functions are typed in part.
# pyright: reportUnknownMemberType=false

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from misotune.attention.fused import miso_attention
from misotune.attention.spans import PackedLayout
from misotune.errors import UnsupportedModelError

ATTENTION_NAME = "miso"

# These scale the rotary frequencies with the row's length, so that aligned positions (method: only position
# differences count) no longer give each pair what a row of its own would.
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class MisoArguments:
    """What a forward call tells the attention of every layer.

    Attributes:
        layout: Where each sample's inputs and output lie in the row.
        weighting: How the n attention results are fused.
        kernel: `auto`, `flash` or `reference`.
    """

    layout: PackedLayout
    weighting: str = "uniform"
    kernel: str = "auto"


def register() -> None:
    """Makes `attn_implementation="miso"` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, _attention_forward)
    # Without a mask function of its own, transformers would drop a padding mask in silence.
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)


def check_model(config: PretrainedConfig, max_length: int) -> None:
    """Refuses a model for which MISO attention would not be exact.

    Args:
        config: The model's configuration.
        max_length: Tokens of the longest sample.

    Raises:
        UnsupportedModelError: With the model's feature and what can be done.
    """
    text = config.get_text_config()
    reasons = [
        *_position_reasons(text),
        *_window_reasons(text, max_length),
    ]
    if getattr(text, "attn_logit_softcapping", None):
        reasons.append(f"attn_logit_softcapping={text.attn_logit_softcapping}: no kernel here caps scores")
    if getattr(text, "attention_dropout", 0.0):
        reasons.append(f"attention_dropout={text.attention_dropout}: set it to 0 in the model's config.json")
    if reasons:
        raise UnsupportedModelError(f"MISO attention would not be exact for {text.model_type}: {'; '.join(reasons)}")


def _position_reasons(config: PretrainedConfig) -> list[str]:
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if not rope:
        return ["its positions are not rotary, and only rotary positions can be aligned"]
    # Models with several rotary kinds (Gemma-3) hold one dict for each kind of layer.
    kinds: list[Any] = list(rope.values()) if all(isinstance(x, dict) for x in rope.values()) else [rope]
    types = {kind.get("rope_type", "default") for kind in kinds}
    return [f"rope_type={x!r} depends on the row's length" for x in sorted(types & _LENGTH_DEPENDENT_ROPE)]


def _window_reasons(config: PretrainedConfig, max_length: int) -> list[str]:
    window = getattr(config, "sliding_window", None)
    layer_types: list[str] = getattr(config, "layer_types", None) or []
    is_used = "sliding_attention" in layer_types if layer_types else getattr(config, "use_sliding_window", True)
    if window and is_used and window < max_length:
        return [f"sliding_window={window} is shorter than a sample of {max_length} tokens; lower data.max_length"]
    return []


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    miso: MisoArguments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function as transformers calls it: query (B, H, T, D), key and value (B, K, T, D)."""
    if miso is None:
        raise ValueError(
            "attention 'miso' needs model(..., miso=MisoArguments(layout)); load with 'sdpa' to do without"
        )
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError(
            "attention 'miso' takes one packed row and no cache, "
            f"got queries {tuple(query.shape)} and keys {tuple(key.shape)}"
        )
    if dropout or kwargs.get("s_aux") is not None:
        raise ValueError("attention 'miso' has no dropout and no attention sinks")
    # Under autocast, rotary embeddings leave queries and keys in float32 beside values in bfloat16.
    if torch.is_autocast_enabled(query.device.type):
        query, key = query.to(value.dtype), key.to(value.dtype)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = miso_attention(q, k, v, miso.layout, weighting=miso.weighting, scale=scaling, kernel=miso.kernel)
    return out[None], None
