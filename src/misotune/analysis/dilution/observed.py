"""The output's share of attention in every layer of a running model.

The model runs with MISO attention under the name `OBSERVED_NAME`, which also notes the share of each layer as it
goes. No layer's queries are kept, and no keys but those of the cache.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from misotune.analysis.observed_model import observed_attention
from misotune.attention import ATTENTION_NAME, MisoArguments
from misotune.attention.kernels import Kernel, select_kernel
from misotune.attention.plan import Block, Blocks, RowPlan
from misotune.attention.spans import Span
from misotune.layout import EncodedSample, build_row

OBSERVED_NAME = "miso-observed"


def output_shares(
    model: Any, sample: EncodedSample, counts: Sequence[int], weightings: Sequence[str], *, kernel: str = "auto"
) -> dict[tuple[int, str], Float[Tensor, "L H Y"]]:
    """Returns the share of attention that each output token pays to the output, by (n, weighting).

    It is A_out of the paper's equation 6 (under `vanilla`; under the others the same share of their own softmax),
    with the model running under the weighting: a layer sees what the layers before it made of the dilution.

    Each input is read once; the output is read anew for each n and weighting, beside the first n inputs. It stays
    where the longest of all inputs puts it, since only differences of positions count.

    Args:
        model: A causal language model, loaded with any attention: L layers, H heads.
        sample: The inputs, as many as the largest n, and the output, Y tokens with the generation prompt.
        counts: The numbers of inputs n.
        weightings: Names in `misotune.attention.WEIGHTINGS`; with one input they are the same.
        kernel: As `MisoArguments.kernel`.
    """
    whole = build_row([sample])
    y = whole.layout.samples[0].output
    ids, positions = whole.input_ids.to(model.device), whole.position_ids.to(model.device)
    cache = DynamicCache()  # told of no configuration, it keeps keys that a sliding window would drop
    shares: dict[tuple[int, str], Tensor] = {}
    with torch.inference_mode(), observed_attention(model, OBSERVED_NAME, _observed_forward):
        _run(model, ids, positions, MisoArguments(whole.layout, kernel=kernel), cache, None)
        for n in sorted(counts, reverse=True):
            row = build_row([replace(sample, inputs=sample.inputs[:n])])
            for weighting in weightings if n > 1 else weightings[:1]:
                cache.crop(row.layout.samples[0].output.start - cache.get_seq_length())
                arguments = MisoArguments(row.layout, weighting, kernel)
                layers: list[Tensor] = []
                _run(model, ids[:, y.tokens], positions[:, y.tokens], arguments, cache, layers)
                shares[n, weighting] = torch.stack(layers)
    return shares | {(1, name): shares[1, weightings[0]] for name in weightings if 1 in counts}


def _run(
    model: Any,
    ids: Tensor,
    positions: Tensor,
    arguments: MisoArguments,
    cache: DynamicCache,
    shares: list[Tensor] | None,
) -> None:
    """Computes the row's last tokens; their keys go to the cache, each layer's shares to `shares`."""
    model(
        ids,
        position_ids=positions,
        miso=arguments,
        miso_shares=shares,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )


def _observed_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    miso: MisoArguments,
    miso_shares: list[Tensor] | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """MISO attention as transformers calls it, query (1, H, Y, D), that appends the layer's shares (H, Y)."""
    result = AttentionInterface()[ATTENTION_NAME](module, query, key, value, attention_mask, miso=miso, **options)
    if miso_shares is None:
        return result
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scaling = options.get("scaling")
    scale = float(q.shape[-1] ** -0.5) if scaling is None else scaling
    kernel = select_kernel(miso.kernel, q.device, q.dtype, q.shape[-1], options.get("softcap"))
    plan = miso.plan(len(q), options.get("sliding_window"))
    share = _share_beside_several if plan.fused else _share_beside_one
    miso_shares.append(share(q, k, v, plan, scale, kernel).cpu())
    return result


def _share_beside_several(
    q: Float[Tensor, "Y H D"],
    k: Float[Tensor, "S K D"],
    v: Float[Tensor, "S K D"],
    plan: RowPlan,
    scale: float,
    kernel: Kernel,
) -> Float[Tensor, "H Y"]:
    """sum_g w_g m S_out / (S_g + m S_out) over groups g of inputs, with m copies of the output's keys.

    The terms are those of `misotune.attention.weighting`.
    """
    (outputs,) = plan.fused
    own = kernel.forward(q, k, v, plan.segments, scale).lse
    pairs = kernel.forward(q, k, v, plan.pairs, scale).lse
    groups = pairs.unflatten(1, (outputs.num_groups, outputs.num_joined, -1)).logsumexp(dim=2)
    log_weights, log_copies = outputs.logs(own)
    copies = (own + log_copies)[:, None]
    return (log_weights + copies - torch.logaddexp(groups, copies)).exp().sum(dim=1)


def _share_beside_one(
    q: Float[Tensor, "Y H D"],
    k: Float[Tensor, "S K D"],
    v: Float[Tensor, "S K D"],
    plan: RowPlan,
    scale: float,
    kernel: Kernel,
) -> Float[Tensor, "H Y"]:
    """S_out / (S_1 + S_out): the plan's one segment, the pair, does not part the input from the output."""
    (pair,) = plan.segments.items
    y = Span(pair.keys.stop - len(pair.queries), pair.keys.stop)
    own = kernel.forward(q, k, v, Blocks((Block(pair.queries, y, pair.left),), is_causal=True), scale).lse
    return (own - kernel.forward(q, k, v, plan.segments, scale).lse).exp()
