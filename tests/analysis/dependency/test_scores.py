"""Shares and scores against stock transformers' own attention weights."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from misotune.analysis.dependency import scores
from misotune.analysis.dependency.scores import dependency_scores, middle_layer, parse_layers, user_shares
from misotune.errors import UnsupportedModelError, UsageError

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8}


def make_model(name, folder):
    torch.manual_seed(1)
    if name == "llama":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if name == "mistral-window":
        return MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=7))
    if name == "gemma2-softcap-window":
        caps = {"attn_logit_softcapping": 0.5, "sliding_window": 7, "query_pre_attn_scalar": 3}
        return Gemma2ForCausalLM(Gemma2Config(**GROUPED, **caps))
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4))


MODELS = ("llama", "mistral-window", "gemma2-softcap-window", "gpt2-learned-positions")


def make_row(length=29):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64, (length,), generator=generator)
    is_user = torch.rand(length, generator=generator) < 0.4
    return ids, is_user, torch.tensor([9, 10, 11, 20, 21, 22, 27, 28])


def stock_weights(model, ids):
    """The attention weights that transformers itself gives out: (L, H, T, T)."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(ids[None], output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation(usual)
    return torch.stack([layer[0] for layer in weights])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block", [1, 10**9], ids=["one-query-at-a-time", "all-at-once"])
def test_shares_are_sums_of_the_stock_models_attention_weights(name, block, tiny_model_dir, monkeypatch):
    model = make_model(name, tiny_model_dir).eval()
    # So large that what a softcap does is seen, and heads differ.
    for parameter in model.parameters():
        parameter.data *= 3
    ids, is_user, places = make_row()
    usual = model.config._attn_implementation
    weights = stock_weights(model, ids)
    expected = weights[:, :, places][..., is_user].sum(dim=-1)
    assert expected.std() > 0.01
    monkeypatch.setattr(scores, "_BLOCK_WEIGHTS", block)
    layers = range(1, len(weights) + 1)
    found = user_shares(model, ids.tolist(), is_user, places, layers)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert model.config._attn_implementation == usual
    (last,) = user_shares(model, ids.tolist(), is_user, places, [len(weights)])
    torch.testing.assert_close(last, expected[-1], rtol=0, atol=1e-6)


def test_a_score_is_the_mean_over_tokens_of_the_largest_heads_sum():
    shares = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = dependency_scores(shares, [slice(0, 2), slice(2, 5)])
    for score, tokens in zip(found, ((0, 1), (2, 3, 4)), strict=True):
        for layer in range(2):
            largest = [max(float(shares[layer, head, token]) for head in range(3)) for token in tokens]
            assert float(score[layer]) == pytest.approx(sum(largest) / len(tokens), abs=1e-12)


def test_the_middle_layer_is_as_deep_as_the_papers():
    assert [middle_layer(n) for n in (22, 30, 32, 2, 1)] == [15, 20, 22, 1, 1]


@pytest.mark.parametrize(
    ("text", "layers"),
    [(None, (8,)), ("all", tuple(range(1, 13))), ("3", (3,)), ("8,2", (2, 8)), ("2-4,3,12", (2, 3, 4, 12))],
)
def test_layers_are_named_by_numbers_and_ranges(text, layers):
    assert parse_layers(text, 12) == layers


@pytest.mark.parametrize("text", ["13", "2-13", "1,12-9999"])
def test_layers_that_the_model_does_not_have_are_refused(text):
    with pytest.raises(UsageError, match=f"--layers {text}: the model has layers 1 to 12"):
        parse_layers(text, 12)


@pytest.mark.parametrize("text", ["", "two", "2-", "-2", "1,,2", "0", "4-2", "1-999999999999"])
def test_what_names_no_layers_is_refused(text):
    with pytest.raises(UsageError, match=f"--layers {text}: numbers from 1 to 9,999, such as 20, 8,20 or 8-20"):
        parse_layers(text, 12)


def test_layers_above_the_last_one_to_look_at_are_not_computed(tiny_model_dir):
    model = make_model("llama", tiny_model_dir).eval()
    computed = []
    for number, layer in enumerate(model.model.layers, start=1):
        layer.register_forward_pre_hook(lambda *_, number=number: computed.append(number))
    ids, is_user, places = make_row()
    user_shares(model, ids.tolist(), is_user, places, [1])
    assert computed == [1]


def test_a_model_whose_attention_is_its_own_is_refused(tiny_model_dir, monkeypatch):
    model = make_model("llama", tiny_model_dir).eval()
    monkeypatch.setattr(model, "set_attn_implementation", lambda name: None)
    ids, is_user, places = make_row()
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM does not take .* so it cannot be observed"):
        user_shares(model, ids.tolist(), is_user, places, [1])


def test_a_layer_whose_attention_is_its_own_is_refused(tiny_model_dir):
    model = make_model("llama", tiny_model_dir).eval()
    model.model.layers[0].self_attn.config = copy.deepcopy(model.config)  # what is set on the model's does not reach it
    ids, is_user, places = make_row()
    user_shares(model, ids.tolist(), is_user, places, [2])
    with pytest.raises(UnsupportedModelError, match="attention cannot be observed inside llama: not all of its layers"):
        user_shares(model, ids.tolist(), is_user, places, [1, 2])
