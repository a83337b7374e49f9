"""Eleven architectures, and DeepSeek's latent heads: against the stock model and against the literal equations.

transformers' own parts bound the agreement: its norms and eager softmax round to float32, and so do its rotary
tables. Two runs of the same model in float64 differ by up to 1e-6 of the largest logit; a wrong key shows in the
second digit.
"""

import pytest
import torch
from tests.attention.tiny_models import Literal, make_model, register_literal
from transformers import (
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from misotune.attention import ATTENTION_NAME, MisoArguments, check_model, register
from misotune.layout import RowLayout

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
FOUR = {"num_hidden_layers": 4, "head_dim": 8, "sliding_window": 6}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
# A window of 6 is shorter than every sample below, shorter than two inputs, and longer than the third.
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "mistral-window": MistralConfig(**SMALL, sliding_window=6),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gemma2-softcap-window": Gemma2Config(**SMALL | FOUR | MIXED, attn_logit_softcapping=2.0, query_pre_attn_scalar=8),
    "gemma3-two-rotary-kinds-window": Gemma3TextConfig(
        **SMALL | FOUR | MIXED,
        query_pre_attn_scalar=8,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        },
    ),
    "phi3": Phi3Config(**SMALL, sliding_window=None),
    "olmo2": Olmo2Config(**SMALL),
    "smollm3-nope-layers": SmolLM3Config(**SMALL | {"num_hidden_layers": 4}, no_rope_layers=[1, 0, 1, 0]),
    "gpt-neox-partial-rotary": GPTNeoXConfig(
        **{key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "granite": GraniteConfig(**SMALL, attention_multiplier=0.2, residual_multiplier=0.5, logits_scaling=2.0),
    "deepseek-v3-latent-heads": DeepseekV3Config(
        **SMALL | {"num_key_value_heads": 4, "num_hidden_layers": 2},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        first_k_dense_replace=2,
    ),
}
SAMPLES = [([7, 12, 4], 6), ([5], 8)]
TOLERANCE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def model(request):
    register()
    register_literal()
    check_model(request.param)
    return make_model(request.param)


def random_ids(count, seed=1):
    return torch.randint(0, 64, (1, count), generator=torch.Generator().manual_seed(seed))


def run(model, ids, attention, **arguments):
    """Logits and every parameter's gradient of a fixed random function of them, both by their largest size."""
    model.set_attn_implementation(attention)
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False, **arguments).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=logits.dtype)
    (logits * weights).sum().backward()
    grads = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    return logits.detach() / logits.abs().max(), grads / grads.abs().max()


def run_miso(model, ids, layout, **options):
    arguments = MisoArguments(layout, **options)
    return run(model, ids, ATTENTION_NAME, position_ids=layout.position_ids[None], miso=arguments)


def run_literal(model, ids, layout, **options):
    samples = [([range(*x) for x in sample.inputs], range(*sample.output)) for sample in layout.samples]
    definition = Literal(samples, **options)
    return run(model, ids, "literal", position_ids=layout.position_ids[None], literal=definition)


def test_one_input_equals_the_stock_model_in_logits_and_gradients(model):
    ids = random_ids(25)
    ours = run_miso(model, ids, RowLayout.from_lengths([([17], 8)]))
    torch.testing.assert_close(ours, run(model, ids, "eager"), **TOLERANCE)


def test_several_inputs_equal_the_literal_equation_in_logits_and_gradients(model):
    layout = RowLayout.from_lengths(SAMPLES)
    ids = random_ids(layout.num_tokens)
    torch.testing.assert_close(run_miso(model, ids, layout), run_literal(model, ids, layout), **TOLERANCE)


def test_packed_samples_with_one_input_equal_the_stock_model_on_each(model):
    ids = random_ids(31)
    ours, _ = run_miso(model, ids, RowLayout.from_lengths([([11], 6), ([5], 9)]))
    model.set_attn_implementation("eager")
    stock = torch.cat([model(row, use_cache=False).logits for row in (ids[:, :17], ids[:, 17:])], dim=1)
    torch.testing.assert_close(ours, stock.detach() / stock.abs().max(), **TOLERANCE)


def test_first_layer_gives_the_output_the_mean_of_what_stock_attention_gives_each_pair(model):
    """Below it there are embeddings alone, so each pair can be run as a row of its own, at its own positions."""
    lengths, length = SAMPLES[0]
    inputs = [random_ids(n, seed=n) for n in lengths]
    output = random_ids(length)
    layout = RowLayout.from_lengths(SAMPLES[:1])
    ours = first_attention(
        model,
        torch.cat([*inputs, output], dim=1),
        ATTENTION_NAME,
        position_ids=layout.position_ids[None],
        miso=MisoArguments(layout),
    )
    stock = [first_attention(model, torch.cat([x, output], dim=1), "eager")[:, -length:] for x in inputs]
    torch.testing.assert_close(ours[:, -length:], torch.stack(stock).mean(dim=0), rtol=1e-5, atol=1e-5)


def first_attention(model, ids, attention, **arguments):
    """What the first layer's attention module returns, output projection and all."""
    name = "attention" if model.config.model_type == "gpt_neox" else "self_attn"
    module = next(module for path, module in model.named_modules() if path.endswith(f"layers.0.{name}"))
    results = []
    handle = module.register_forward_hook(lambda module, args, result: results.append(result[0]))
    model.set_attn_implementation(attention)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False, **arguments)
    handle.remove()
    return results[0]


@pytest.mark.parametrize("weighting", ["fid", "vanilla"])
@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2-softcap-window"])
def test_other_weightings_equal_the_literal_equations(name, weighting):
    register()
    register_literal()
    model = make_model(CONFIGS[name])
    layout = RowLayout.from_lengths(SAMPLES)
    ids = random_ids(layout.num_tokens)
    ours = run_miso(model, ids, layout, weighting=weighting)
    torch.testing.assert_close(ours, run_literal(model, ids, layout, weighting=weighting), **TOLERANCE)
    difference = (ours[0] - run_miso(model, ids, layout)[0]).abs().max()
    assert difference > 1e-3  # not the mean over pairs by another name


@pytest.mark.parametrize(
    ("name", "feature", "without"),
    [
        ("mistral-window", "sliding_window", None),
        ("gemma2-softcap-window", "sliding_window", 128),
        ("gemma2-softcap-window", "attn_logit_softcapping", None),
        ("gemma3-two-rotary-kinds-window", "sliding_window", 128),
    ],
)
def test_windows_and_softcaps_above_bind(name, feature, without):
    """Else the tests above would show nothing about them."""
    register()
    layout = RowLayout.from_lengths(SAMPLES)
    ids = random_ids(layout.num_tokens)
    bound, _ = run_miso(make_model(CONFIGS[name]), ids, layout)
    config = type(CONFIGS[name]).from_dict(CONFIGS[name].to_dict() | {feature: without})
    free, _ = run_miso(make_model(config), ids, layout)
    assert (bound - free).abs().max() > 1e-2
