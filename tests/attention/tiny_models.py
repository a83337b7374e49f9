"""Tiny random models of any architecture, and the definition of MISO attention inside them, without misotune.

`literal` is an attention function for transformers: per layer, eq. 3, 4 or 7 over each pair's own causal attention
[K_i; K_y], term by term in the tensors' own type. A forward call tells it the samples as lists of token numbers.
"""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface


class Literal(NamedTuple):
    """What a forward call tells `literal`: each sample's inputs and output as token numbers, and their weights."""

    samples: list[tuple[list[range], range]]
    weighting: str = "uniform"
    weights: list[list[float]] | None = None


def literal(module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **options):
    """Attention as transformers calls it: query (1, H, T, D), key and value (1, K, S, D); returns (1, T, H, D)."""
    definition = options["literal"]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    copies = query.shape[1] // key.shape[1]
    row = SimpleNamespace(
        q=query[0] * scale,
        k=key[0].repeat_interleave(copies, dim=0),
        v=value[0].repeat_interleave(copies, dim=0),
        window=sliding_window or math.inf,
        softcap=softcap,
    )
    results = torch.zeros(query.shape[1], query.shape[2], value.shape[-1], dtype=value.dtype)
    for number, (inputs, output) in enumerate(definition.samples):
        weights = definition.weights[number] if definition.weights else [1 / len(inputs)] * len(inputs)
        for x in inputs:
            for t, token in enumerate(x):
                results[:, token] = _attention(row, token, [*x[: t + 1]])[0]
        for t, token in enumerate(output):
            own = [*output[: t + 1]]
            if definition.weighting == "vanilla":
                results[:, token] = _vanilla(row, token, inputs, own)
                continue
            pairs = [_attention(row, token, [*x, *own]) for x in inputs]
            outs, lses = torch.stack([out for out, _ in pairs]), torch.stack([lse for _, lse in pairs])
            is_fid = definition.weighting == "fid"
            scores = lses.softmax(dim=0) if is_fid else torch.tensor(weights, dtype=lses.dtype)[:, None]
            results[:, token] = (scores[..., None] * outs).sum(dim=0)
    return results.transpose(0, 1)[None].contiguous(), None


def _attention(row, query, keys):
    """Equation 1 for one query: its result (H, D), and the log of its softmax's denominator (H)."""
    seen = keys[-row.window :] if row.window < len(keys) else keys
    scores = _scores(row, query, seen)
    return torch.einsum("hs,hsd->hd", scores.softmax(dim=-1), row.v[:, seen]), scores.logsumexp(dim=-1)


def _vanilla(row, query, inputs, own):
    """Equation 4: one softmax over the keys of all pairs, each key once."""
    seen = [key for x in inputs for t, key in enumerate(x) if len(x) - t + len(own) <= row.window]
    seen += own[-row.window :] if row.window < len(own) else own
    return torch.einsum("hs,hsd->hd", _scores(row, query, seen).softmax(dim=-1), row.v[:, seen])


def _scores(row, query, keys):
    scores = torch.einsum("hd,hsd->hs", row.q[:, query], row.k[:, keys])
    return scores if row.softcap is None else row.softcap * torch.tanh(scores / row.softcap)


def register_literal():
    AttentionInterface.register("literal", literal)
    AttentionMaskInterface.register("literal", lambda *args, **kwargs: None)


def make_model(config, seed=0):
    """A model in float64 whose random weights are large enough for attention to matter."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # The default for experts, grouped matrix products, takes no float64.
    model = model_class._from_config(config, attn_implementation="eager", experts_implementation="eager")
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.25, generator=generator)
    return model
