"""The measured shares against stock transformers' own softmax, and against the definition in loops."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from misotune.analysis.attention.parts import PARTS, RESPONSE, PartedRow
from misotune.analysis.attention.prompts import Constraint, ParsedPrompt
from misotune.analysis.attention.shares import block_shares, part_shares
from misotune.attention.spans import Span
from misotune.layout import EncodedSample
from misotune.samples import Sample

NUM_CONSTRAINTS = 2


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    """Two layers, four heads on two key-value heads, in float64."""
    load = AutoModelForCausalLM.from_pretrained
    return load(tiny_model_dir, dtype=torch.float64, attn_implementation="eager").eval()


def make_row(input_length, response_length, *, vocabulary=250, seed=0, num_opening=3):
    """A row whose prompt tokens belong to parts at random, two constraints among them."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocabulary, input_length + num_opening + response_length, dtype=np.int32)
    output = ids[input_length:]
    encoded = EncodedSample("row", (ids[:input_length],), output, np.arange(len(output)) >= num_opening)
    parts = generator.choice([0, 1, 2, 4, len(PARTS), len(PARTS) + 1], size=len(ids))
    parts[input_length + num_opening :] = RESPONSE
    constraints = tuple(Constraint(f"c{i}", Span(0, 1)) for i in range(NUM_CONSTRAINTS))
    return PartedRow(ParsedPrompt(Sample("row", "", "", (), "x"), Span(0, 1), constraints), encoded, parts, "x")


def stock_shares(model, row):
    """Of a stock model's attention weights, what the response's queries give each part: (L, H, P)."""
    ids = torch.as_tensor(np.concatenate([*row.encoded.inputs, row.encoded.output]).astype(np.int64))[None]
    softmax = torch.nn.functional.softmax
    with pytest.MonkeyPatch.context() as patch:
        # Stock models round their softmax to float32, whatever the model's type.
        patch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype: softmax(scores, dim=dim))
        weights = model(ids, output_attentions=True, use_cache=False).attentions
    queries = torch.as_tensor(row.parts == RESPONSE)
    by_part = [torch.as_tensor(row.parts == part) for part in range(row.num_parts)]
    layers = [layer[0][:, queries].mean(dim=1) for layer in weights]
    return torch.stack([torch.stack([x[:, keys].sum(dim=1) for keys in by_part], dim=1) for x in layers])


def test_it_is_what_the_stock_models_attention_weights_sum_to(model):
    row = make_row(40, 17)
    measured = part_shares(model, row)
    assert measured.shape == (2, 4, len(PARTS) + NUM_CONSTRAINTS)
    torch.testing.assert_close(measured, stock_shares(model, row), rtol=0, atol=1e-8)
    torch.testing.assert_close(measured.sum(dim=2), torch.ones(2, 4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_model_in_float32_gives_them_to_1e_6(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, attn_implementation="eager").eval()
    row = make_row(40, 17)
    torch.testing.assert_close(part_shares(model, row).float(), stock_shares(model, row), rtol=0, atol=1e-6)


def tiny(config_type, model_type, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = config_type(vocab_size=64, num_hidden_layers=2, attn_implementation="eager", **sizes, **options)
    return model_type(config).double().eval()


WINDOWS = {"within-the-response": 4, "within-the-prompt": 21, "not-reached": 64}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_a_sliding_window_hides_the_same_keys_as_in_the_stock_model(window):
    model = tiny(MistralConfig, MistralForCausalLM, sliding_window=window)
    row = make_row(20, 9, vocabulary=64)
    torch.testing.assert_close(part_shares(model, row), stock_shares(model, row), rtol=0, atol=1e-8)


def test_capped_scores_and_layers_of_both_kinds_are_the_stock_models():
    options = {"head_dim": 8, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 3, "sliding_window": 6}
    model = tiny(Gemma2Config, Gemma2ForCausalLM, **options)
    row = make_row(20, 9, vocabulary=64)
    torch.testing.assert_close(part_shares(model, row), stock_shares(model, row), rtol=0, atol=1e-8)


def literal_shares(q, k, parts, num_parts, scale, window):
    (num_queries, num_heads, size), (num_keys, num_groups, _) = q.shape, k.shape
    total = [[0.0] * num_parts for _ in range(num_heads)]
    for head in range(num_heads):
        group = head // (num_heads // num_groups)
        for i in range(num_queries):
            at = num_keys - num_queries + i
            seen = [j for j in range(num_keys) if j <= at and (window is None or at - j < window)]
            dots = {j: sum(float(q[i, head, d]) * float(k[j, group, d]) for d in range(size)) for j in seen}
            weights = {j: math.exp(scale * dot) for j, dot in dots.items()}
            for j, weight in weights.items():
                total[head][int(parts[j])] += weight / sum(weights.values()) / num_queries
    return torch.tensor(total, dtype=torch.float64)


@pytest.mark.parametrize("window", [None, 1, 5], ids=["no-window", "own-key-alone", "window-5"])
@pytest.mark.parametrize("scores_at_once", [1, 150, 1 << 20], ids=["query-by-query", "blocks", "one-block"])
def test_blocks_of_any_size_give_the_definition_in_loops(window, scores_at_once):
    torch.manual_seed(0)
    q, k = torch.randn(7, 6, 5, dtype=torch.float64), torch.randn(12, 2, 5, dtype=torch.float64)
    parts = torch.randint(0, 4, (12,))
    got = block_shares(q, k, parts, 4, 0.7, window=window, scores_at_once=scores_at_once)
    torch.testing.assert_close(got, literal_shares(q, k, parts, 4, 0.7, window), rtol=0, atol=1e-12)


class _Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operator returns."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.num_elements = max(self.num_elements, x.untyped_storage().nbytes() // x.element_size())
        return result


def test_the_largest_tensor_does_not_grow_with_the_square_of_the_row():
    largest = []
    for length in (512, 1024, 2048):
        q, k = torch.randn(length, 2, 4), torch.randn(length, 1, 4)
        with _Largest() as noted:
            block_shares(q, k, torch.zeros(length, dtype=torch.long), 6, 1.0, scores_at_once=1 << 14)
        largest.append(noted.num_elements)
    assert max(largest) <= 1 << 14


def test_a_model_has_its_own_attention_back_even_after_an_error(model):
    part_shares(model, make_row(5, 3))
    assert model.config._attn_implementation == "eager"
    with pytest.raises(IndexError):  # a token that the model does not have
        part_shares(model, make_row(5, 3, vocabulary=10**6))
    assert model.config._attn_implementation == "eager"
