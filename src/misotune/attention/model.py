"""MISO attention in transformers models: the one file that knows `AttentionInterface`.

A model loaded with `attn_implementation=ATTENTION_NAME` is any stock model; the row's layout travels as a
keyword argument of `model.forward`, which transformers hands unchanged to the attention function:

    model(input_ids, position_ids=..., miso=MisoArguments(layout), use_cache=False)

With a cache, the queries may be the row's last tokens alone; the layout always describes all keys.
"""

# transformers' own functions are typed in part.
# pyright: reportUnknownMemberType=false

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface, PretrainedConfig

from misotune.attention.fused import miso_attention
from misotune.attention.kernels import select_kernel
from misotune.attention.plan import RowPlan, plan_row
from misotune.attention.spans import PackedLayout
from misotune.attention.steering import SteerArguments, add_columns, refuse_softcap
from misotune.errors import UnsupportedModelError

ATTENTION_NAME = "miso"

_EXACT_LAYERS = frozenset({"full_attention", "sliding_attention"})

# Those with frequencies that are the same whatever the row's length, and two that are up to a limit.
_ROPE_TYPES = frozenset({"default", "linear", "llama3", "proportional", "yarn", "dynamic", "longrope"})

_DRAFTS = "it drafts from the keys and values of another model"
_SINKS = "its attention sinks take part in each softmax, and no kernel here has them"
_RUNS_ON = "its convolutions or recurrent layers run on from input to input"
_NO_KEYWORDS = "its layers do not hand keyword arguments, and so the row's layout, to attention"

# Model types whose configuration does not tell what makes them inexact.
_INEXACT_TYPES = {
    "beam": "its queries are scaled by their absolute position",
    "deepseek_v4": _SINKS,
    "doge": "its attention masks are computed from the tokens",
    "flint": _SINKS,
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "gpt_oss": _SINKS,
    "granite_swa": _SINKS,
    "granitemoe_swa": _SINKS,
    "hy_v4": _SINKS,
    "lfm2": _RUNS_ON,
    "lfm2_moe": _RUNS_ON,
    "mimo_v2_flash": _SINKS,
    "moshi": _NO_KEYWORDS,
    "nemotron": _NO_KEYWORDS,
    "phimoe": "its sliding window is part of the mask alone, so that no attention function learns of it",
    "recurrent_gemma": _RUNS_ON,
}


@dataclass(frozen=True, slots=True)
class MisoArguments:
    """What a forward call tells the attention of every layer.

    Attributes:
        layout: Where each sample's inputs and output lie in the row.
        weighting: How the n attention results are fused: `uniform`, `fixed`, `fid` or `vanilla`.
        kernel: `auto`, `flash`, `eager` or `reference`.
        steer: Scales attention to tokens of the row that are not the user's, in each pair on its own; None: nothing.
    """

    layout: PackedLayout
    weighting: str = "uniform"
    kernel: str = "auto"
    steer: SteerArguments | None = None
    _plans: dict[tuple[int, int | None], RowPlan] = field(
        default_factory=dict[tuple[int, int | None], RowPlan], repr=False, compare=False
    )

    @property
    def num_tokens(self) -> int:
        """Tokens that the layout describes."""
        return self.layout.samples[-1].whole.stop if self.layout.samples else 0

    def plan(self, num_queries: int, window: int | None) -> RowPlan:
        """Returns the row's plan, made once for all layers with the same window."""
        window = None if window is None or window >= self.num_tokens else window
        key = (num_queries, window)
        if key not in self._plans:
            self._plans[key] = plan_row(self.layout, self.weighting, num_queries=num_queries, window=window)
        return self._plans[key]


def register() -> None:
    """Makes `attn_implementation="miso"` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, _attention_forward)
    # Without a mask function of its own, transformers would drop a padding mask in silence.
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)


def check_model(config: PretrainedConfig, max_length: int | None = None) -> None:
    """Refuses a model for which MISO attention would not be exact.

    Args:
        config: The model's configuration.
        max_length: Tokens of the longest pair of an input with the output; None: any.

    Raises:
        UnsupportedModelError: With every feature of the model that stands in the way.
    """
    text = config.get_text_config(decoder=True)
    reasons = [
        *_type_reasons(config.model_type, text.model_type),
        *_position_reasons(text, max_length),
        *_attention_reasons(text),
        *_class_reasons(config),
    ]
    if reasons:
        raise UnsupportedModelError(f"MISO attention would not be exact for {text.model_type}: {'; '.join(reasons)}")


def _type_reasons(*model_types: str) -> Iterator[str]:
    for name in dict.fromkeys(model_types):
        if name in _INEXACT_TYPES:
            yield _INEXACT_TYPES[name]


def has_sinks(config: PretrainedConfig) -> bool:
    """Returns whether a model's attention has sinks: numbers that take part in each softmax, and are no keys."""
    return _SINKS in _type_reasons(config.model_type, config.get_text_config(decoder=True).model_type)


def _position_reasons(config: PretrainedConfig, max_length: int | None) -> Iterator[str]:
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if not rope:
        yield "its positions are not rotary, and only rotary positions can be aligned"
    # Models with several rotary kinds (Gemma-3) hold one dict for each kind of layer.
    kinds: list[Any] = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
    limits: dict[str, int] = {}
    for kind in kinds:
        limits.update(_position_limits(config, kind))
        if kind.get("rope_type", "default") not in _ROPE_TYPES:
            yield f"rope_type={kind['rope_type']!r} is not known to rest on differences of positions alone"
    for feature, limit in sorted(limits.items()):
        if max_length is None or max_length > limit:
            asked = "" if max_length is None else f", and rows may have {max_length} here (a recipe: data.max_length)"
            yield f"{feature} depends on the row's length or position beyond {limit} tokens{asked}"


def _position_limits(config: PretrainedConfig, rope: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields what no longer depends on position differences alone beyond a number of tokens, and that number.

    Aligned positions rest on this: only differences count, so that one output serves all pairs.
    """
    rope_type = rope.get("rope_type")
    trained: int = rope.get("original_max_position_embeddings") or 0
    if rope_type == "dynamic":
        yield "rope_type='dynamic'", config.max_position_embeddings
    elif rope_type == "longrope":
        yield "rope_type='longrope'", trained
    if rope.get("llama_4_scaling_beta"):
        yield "llama_4_scaling_beta", trained
    if getattr(config, "attn_temperature_tuning", False):
        yield "attn_temperature_tuning", config.floor_scale - 1


def _attention_reasons(config: PretrainedConfig) -> Iterator[str]:
    layers: list[str] = getattr(config, "layer_types", None) or []
    if other := sorted(set(layers) - _EXACT_LAYERS):
        yield f"layers of type {', '.join(other)} are not attention over all keys or a sliding window of them"
    if getattr(config, "use_bidirectional_attention", None) in (True, "all") or not getattr(config, "is_causal", True):
        yield "its attention is not causal"
    if getattr(config, "attention_dropout", 0.0):
        yield f"attention_dropout={config.attention_dropout}: set it to 0 in the model's config.json"


def _class_reasons(config: PretrainedConfig) -> Iterator[str]:
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    classes: list[Any] = [*found] if isinstance(found, tuple) else [found]
    if config.is_encoder_decoder:
        yield "it is an encoder-decoder"
    elif not classes:
        yield "transformers has no causal language model for it"
    elif not all(model._supports_attention_backend for model in classes):
        yield "its attention does not go through transformers' AttentionInterface"


def describe_kernel(config: PretrainedConfig, name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Returns which kernel a model's attention takes, with the reason where `auto` cannot take flash.

    Args:
        config: The model's configuration.
        name: `auto`, `flash`, `eager` or `reference`.
        device: Where the model runs.
        dtype: The type of its queries, keys and values.

    Raises:
        ValueError: An unknown name, or `flash` where it cannot be; with the reason.
    """
    if name == "reference":
        return name
    text = config.get_text_config(decoder=True)
    needs = (device, dtype, _head_size(text), getattr(text, "attn_logit_softcapping", None))
    if name != "auto":
        return select_kernel(name, *needs).name
    try:
        return select_kernel("flash", *needs).name
    except ValueError as error:
        reason = str(error).removeprefix("kernel ").partition(";")[0]
    return f"{select_kernel(name, *needs).name}, since {reason}"


def _head_size(config: PretrainedConfig) -> int:
    """Returns the largest head size of a model's layers, of queries or of values."""
    names = ("head_dim", "global_head_dim", "v_head_dim")
    latent = getattr(config, "qk_nope_head_dim", None) or 0, getattr(config, "qk_rope_head_dim", None) or 0
    sizes = [*(getattr(config, name, None) or 0 for name in names), sum(latent)]
    return max(sizes) or config.hidden_size // config.num_attention_heads


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    miso: MisoArguments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function as transformers calls it: query (B, H, T, D), key and value (B, K, S, D)."""
    if miso is None:
        raise ValueError(
            "attention 'miso' needs model(..., miso=MisoArguments(layout)); load with 'sdpa' to do without"
        )
    if query.shape[0] != 1 or key.shape[2] != miso.num_tokens:
        raise ValueError(
            f"attention 'miso' takes one packed row, of the {miso.num_tokens} tokens that its layout describes, "
            f"got queries {tuple(query.shape)} and keys {tuple(key.shape)}"
        )
    if dropout or attention_mask is not None or kwargs.get("s_aux") is not None:
        raise ValueError("attention 'miso' has no dropout, no attention sinks and no masks but its layout's")
    # Under autocast, rotary embeddings leave queries and keys in float32 beside values in bfloat16.
    if torch.is_autocast_enabled(query.device.type):
        query, key = query.to(value.dtype), key.to(value.dtype)
    scale = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if miso.steer is not None and miso.steer.steering.reaches(int(getattr(module, "layer_idx", -1))):
        refuse_softcap(softcap)
        q, k = add_columns(q, k, miso.steer, scale)
    # Zeros behind a head change neither scores nor results: kernels take one head size (MLA has two).
    head_size = max(q.shape[-1], v.shape[-1])
    q, k, v = (_padded(x, head_size) for x in (q, k, v))
    out = miso_attention(
        q,
        k,
        v,
        miso.layout,
        weighting=miso.weighting,
        scale=scale,
        window=sliding_window,
        softcap=softcap,
        kernel=miso.kernel,
        plan=miso.plan(len(q), sliding_window),
    )
    # Some models take a view of it.
    return out[None, ..., : value.shape[-1]].contiguous(), None


def _padded(x: Tensor, head_size: int) -> Tensor:
    return x if x.shape[-1] == head_size else functional.pad(x, (0, head_size - x.shape[-1]))
