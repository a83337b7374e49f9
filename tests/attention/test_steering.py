"""Steering against its definition: softmax weights scaled and renormalised, layer by layer, in float64."""

import math

import pytest
import torch
from tests.attention.tiny_models import make_model
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from misotune.attention.steered import STEERED_NAME, check_steering, register_steered, steered_attention
from misotune.attention.steering import SteerArguments, Steering, add_columns, grown, parse_numbers
from misotune.errors import UnsupportedModelError, UsageError

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
# The windows are shorter than the rows, and the softcap is near the scores: both are at work.
CONFIGS = {
    "llama-grouped": LlamaConfig(**SIZES),
    "qwen3-every-head-its-own": Qwen3Config(**{**SIZES, "num_key_value_heads": 4}),
    "mistral-window": MistralConfig(**SIZES, sliding_window=6),
    "gemma2-softcap": Gemma2Config(
        **SIZES, sliding_window=6, layer_types=LAYER_TYPES, attn_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
    "gemma3-two-kinds": Gemma3TextConfig(**SIZES, sliding_window=6, layer_types=LAYER_TYPES, query_pre_attn_scalar=8),
}
STEERINGS = {
    "everywhere": Steering(0.6),
    "weakly": Steering(0.95),
    "two-layers": Steering(0.3, layers=(1, 3)),
    "some-heads": Steering(0.3, heads=(2, 3)),
    "one-layer-one-head": Steering(0.1, layers=(2,), heads=(4,)),
}
LENGTHS = (14, 9, 11)
# log(alpha) is kept in float32, and each layer carries its rounding on.
CLOSE = {"rtol": 1e-6, "atol": 5e-6}


def literal(module, query, key, value, attention_mask, scaling=None, softcap=None, **options):
    """Stock eager attention in the tensors' own type; the weights of keys that are no user tokens are scaled."""
    alpha, layers, heads, is_user = options["literal_steer"]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    copies = query.shape[1] // key.shape[1]
    k, v = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
    scores = query @ k.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = (scores + attention_mask).softmax(dim=-1)
    for head in range(query.shape[1]):
        if (layers is None or module.layer_idx + 1 in layers) and (heads is None or head + 1 in heads):
            own = torch.where(is_user[:, None, :], weights[:, head], alpha * weights[:, head])
            weights[:, head] = own / own.sum(dim=-1, keepdim=True)
    return (weights @ v).transpose(1, 2).contiguous(), None


@pytest.fixture(scope="module", autouse=True)
def register_literal():
    AttentionInterface.register("literal-steered", literal)
    AttentionMaskInterface.register("literal-steered", AttentionMaskInterface()["eager"])


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return make_model(CONFIGS[request.param])


@pytest.fixture(scope="module")
def llama():
    return make_model(CONFIGS["llama-grouped"])


@pytest.fixture(scope="module")
def batch():
    """Rows padded on the left: ids, mask, positions and which tokens are the user's."""
    draw = torch.Generator().manual_seed(0)
    width = max(LENGTHS)
    ids = torch.randint(64, (len(LENGTHS), width), generator=draw)
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in LENGTHS])
    is_user = (torch.rand(ids.shape, generator=draw) < 0.4) & mask.bool()
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), is_user


def run(model, name, batch, **options):
    ids, mask, positions, _ = batch
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        with torch.no_grad():
            return model(ids, attention_mask=mask, position_ids=positions, use_cache=False, **options).logits
    finally:
        model.set_attn_implementation(before)


def steered(model, batch, steering):
    register_steered()
    return run(model, STEERED_NAME, batch, steer=SteerArguments.of(steering, batch[3]))


def only_seen(logits, mask):
    return logits[mask.bool()]


@pytest.mark.parametrize("steering", STEERINGS.values(), ids=STEERINGS)
def test_it_is_weights_scaled_and_renormalised_in_each_layer_and_head(model, batch, steering):
    told = (steering.alpha, steering.layers, steering.heads, batch[3])
    expected = run(model, "literal-steered", batch, literal_steer=told)
    found = steered(model, batch, steering)
    torch.testing.assert_close(only_seen(found, batch[1]), only_seen(expected, batch[1]), **CLOSE)
    # What is compared depends on the steering.
    plain = run(model, "literal-steered", batch, literal_steer=(1.0, None, None, batch[3]))
    assert (only_seen(plain, batch[1]) - only_seen(expected, batch[1])).abs().max() > 1e-3


def test_with_alpha_1_it_is_the_stock_model_to_the_last_bit(llama, batch):
    stock = run(llama, "sdpa", batch)
    assert torch.equal(only_seen(steered(llama, batch, Steering(1.0)), batch[1]), only_seen(stock, batch[1]))


def test_layers_that_are_not_chosen_are_the_stock_models(llama, batch):
    hidden = {}
    for name, attention, options in (
        ("stock", "sdpa", {}),
        ("steered", STEERED_NAME, {"steer": SteerArguments.of(Steering(0.1, layers=(3,)), batch[3])}),
    ):
        handle = llama.model.layers[2].register_forward_pre_hook(
            lambda module, args, name=name: hidden.update({name: args[0]})
        )
        run(llama, attention, batch, **options)
        handle.remove()
    assert torch.equal(only_seen(hidden["steered"], batch[1]), only_seen(hidden["stock"], batch[1]))


def test_with_alpha_near_0_other_tokens_are_as_if_they_were_not_there(batch):
    """One layer: a user token's result rests on the user's tokens up to it; in the mask the others are removed."""
    model = make_model(LlamaConfig(**{**SIZES, "num_hidden_layers": 1}))
    ids, mask, positions, is_user = batch
    found = steered(model, batch, Steering(1e-30))
    expected = run(model, "sdpa", (ids, mask & is_user, positions, is_user))
    torch.testing.assert_close(found[is_user], expected[is_user], **CLOSE)


def test_alpha_does_not_compound_over_layers(batch):
    """Layers whose values are 0 pass on what they got: each would scale a mask that all share."""
    models = {n: make_model(LlamaConfig(**{**SIZES, "num_hidden_layers": n})) for n in (1, 4)}
    with torch.no_grad():
        for layer in models[4].model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        last, only = models[4].model.layers[3], models[1].model.layers[0]
        last.load_state_dict(only.state_dict())
        models[4].model.embed_tokens.load_state_dict(models[1].model.embed_tokens.state_dict())
        models[4].model.norm.load_state_dict(models[1].model.norm.state_dict())
        models[4].lm_head.load_state_dict(models[1].lm_head.state_dict())
    steering = Steering(0.5)
    four, one = (only_seen(steered(models[n], batch, steering), batch[1]) for n in (4, 1))
    torch.testing.assert_close(four, one, rtol=1e-12, atol=1e-12)


def test_what_a_call_is_told_is_not_written_to(llama, batch):
    arguments = SteerArguments.of(Steering(0.5), batch[3])
    before = arguments.log_factors.clone()
    run(llama, STEERED_NAME, batch, steer=arguments)
    assert torch.equal(arguments.log_factors, before)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no-mask"])
def test_no_token_sees_what_comes_after_it(model, masked):
    register_steered()
    ids = torch.arange(14)[None] % 64
    other = ids.clone()
    other[0, 9:] += 20
    is_user = torch.arange(14)[None] % 3 == 0
    options = {"attention_mask": torch.ones_like(ids)} if masked else {}
    with torch.no_grad(), steered_attention(model, Steering(0.4)):
        logits = [
            model(x, use_cache=False, steer=SteerArguments.of(Steering(0.4), is_user), **options).logits
            for x in (ids, other)
        ]
    assert torch.equal(logits[0][:, :9], logits[1][:, :9])
    assert not torch.allclose(logits[0][:, 9:], logits[1][:, 9:])


def test_a_mask_that_is_left_out_is_the_models_own(model, batch):
    """Transformers leaves out masks of rows without padding, and models may be called without one."""
    ids, _, _, is_user = (x[:1] for x in batch)
    told = (0.4, None, None, is_user)
    everything = (ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], is_user)
    expected = run(model, "literal-steered", everything, literal_steer=told)
    with torch.no_grad(), steered_attention(model, Steering(0.4)):
        found = model(ids, use_cache=False, steer=SteerArguments.of(Steering(0.4), is_user)).logits
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_row_of_a_batch_is_what_it_is_alone(model, batch):
    found = steered(model, batch, Steering(0.4))
    for row, length in enumerate(LENGTHS):
        alone = tuple(x[row : row + 1, -length:] for x in batch)
        torch.testing.assert_close(found[row : row + 1, -length:], steered(model, alone, Steering(0.4)), **CLOSE)


def test_tokens_one_by_one_with_a_cache_are_what_they_are_at_once(model, batch):
    ids, mask, positions, is_user = batch
    expected = steered(model, batch, Steering(0.4, heads=(1, 4)))
    steering = Steering(0.4, heads=(1, 4))
    # Told of the configuration, the cache drops what a sliding window no longer reads.
    cache, found = DynamicCache(config=model.config), []
    with torch.no_grad(), steered_attention(model, steering):
        for start, stop in ((0, 8), *((at, at + 1) for at in range(8, ids.shape[1]))):
            found.append(
                model(
                    ids[:, start:stop],
                    attention_mask=mask[:, :stop],
                    position_ids=positions[:, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                    steer=SteerArguments.of(steering, is_user[:, :stop]),
                ).logits
            )
    torch.testing.assert_close(only_seen(torch.cat(found, dim=1), mask), only_seen(expected, mask), **CLOSE)


@pytest.mark.parametrize("at_once", [1, 14 * 14, 2 * 4 * 14 * 14], ids=["a-token", "a-row", "two-rows"])
def test_pieces_are_the_whole(model, batch, monkeypatch, at_once):
    expected = steered(model, batch, Steering(0.4))
    monkeypatch.setattr("misotune.attention.steered._SCORES_AT_ONCE", at_once)
    torch.testing.assert_close(steered(model, batch, Steering(0.4)), expected, **CLOSE)


def test_in_bfloat16_it_is_near_the_definition(batch):
    model = make_model(CONFIGS["llama-grouped"])
    told = (0.6, None, None, batch[3])
    expected = run(model, "literal-steered", batch, literal_steer=told)
    found = steered(model.to(torch.bfloat16), batch, Steering(0.6)).double()
    plain = run(model, "sdpa", batch).double()
    error, effect = ((x - expected).abs().mean() for x in (found, plain))
    assert error < 0.5 * effect


def test_the_model_has_its_own_attention_back_and_needs_to_be_told(llama, batch):
    with pytest.raises(UnsupportedModelError, match="does not hand keyword arguments to attention"):
        run(llama, STEERED_NAME, batch)
    before = llama.config._attn_implementation
    with steered_attention(llama, Steering(0.5)):
        assert llama.config._attn_implementation == STEERED_NAME
    assert llama.config._attn_implementation == before


def test_models_and_numbers_that_cannot_be_are_refused():
    with pytest.raises(UnsupportedModelError, match="gpt_oss cannot be steered: its attention sinks"):
        check_steering(GptOssConfig(), Steering(0.9))
    config = CONFIGS["llama-grouped"]
    check_steering(config, Steering(0.9, layers=(1, 3), heads=(4,)))
    with pytest.raises(UsageError, match="--steer-layers 2,4: the model has layers 1 to 3"):
        check_steering(config, Steering(0.9, layers=(2, 4)))
    with pytest.raises(UsageError, match="--steer-heads 5: the model has heads 1 to 4"):
        check_steering(config, Steering(0.9, heads=(5,)))
    for alpha in (0.0, -1.0, 1.01, 95.0, math.nan, math.inf):
        with pytest.raises(UsageError, match=r"a number above 0 and at most 1, such as 0.95"):
            Steering(alpha)
    for text in ("", "x", "0", "3-1", "1,,2", "1-", "all", "1-999999999999"):
        with pytest.raises(UsageError, match="numbers from 1 to 9,999"):
            parse_numbers(text, "--steer-layers")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.95, 0.5, 0.001])
def test_two_columns_add_what_is_wanted_to_the_scores(alpha, dtype):
    q, k = (torch.randn(3, 4, 6).to(dtype), torch.randn(5, 2, 6).to(dtype))
    is_user = torch.tensor([[True, False, False, True, False]])
    steer = SteerArguments.of(Steering(alpha, heads=(2, 3)), is_user)
    more_q, more_k = add_columns(q, k, steer, 6**-0.5)
    assert more_q.shape[-1] == more_k.shape[-1] == 8

    def scores(q, k):
        return torch.einsum("thd,shd->hts", q.double(), k.double().repeat_interleave(2, dim=1)) * 6**-0.5

    added = scores(more_q, more_k) - scores(q, k)
    factors = torch.where(is_user[0], 0.0, math.log(alpha)).double()
    for head, expected in enumerate((torch.zeros(5).double(), factors, factors, torch.zeros(5).double())):
        # The keys' own eight bits alone would err by 2e-3.
        torch.testing.assert_close(added[head], expected.expand(3, 5), rtol=2e-5, atol=1e-6)


def test_generated_tokens_are_not_the_users():
    prompts = torch.tensor([[False, True, True], [True, False, True]])
    assert grown(prompts, 2, -1).tolist() == [[False, True], [True, False]]
    assert grown(prompts, 3, 1).tolist() == [[True, True, False], [False, True, False]]
    assert grown(prompts, 5, 2).tolist() == [[False, True, True, False, False], [True, False, True, False, False]]
