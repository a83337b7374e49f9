"""MISO attention inside transformers models, against the stock model and against literal pairs."""

import re

import pytest
import torch
from tests.attention.tiny_models import make_model
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BloomConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MiniMaxConfig,
    Ministral3Config,
    MistralConfig,
    NemotronConfig,
    Phi3Config,
    PhimoeConfig,
    Qwen2Config,
    ViTConfig,
)

from misotune.attention import ATTENTION_NAME, MisoArguments, check_model, register
from misotune.attention.model import describe_kernel
from misotune.errors import UnsupportedModelError
from misotune.layout import RowLayout


@pytest.fixture(scope="module")
def models(tiny_model_dir):
    register()
    load = AutoModelForCausalLM.from_pretrained
    miso = load(tiny_model_dir, dtype=torch.float64, attn_implementation=ATTENTION_NAME)
    return miso.eval(), load(tiny_model_dir, dtype=torch.float64, attn_implementation="eager").eval()


def run(model, ids, layout, **options):
    return model(
        ids, position_ids=layout.position_ids[None], miso=MisoArguments(layout, **options), use_cache=False
    ).logits


def test_one_input_equals_the_stock_model(models):
    miso, stock = models
    ids = torch.randint(0, 250, (1, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(miso, ids, RowLayout.from_lengths([([13], 7)])), stock(ids).logits)


@pytest.mark.parametrize("weighting", ["uniform", "fid", "vanilla"])
def test_equal_inputs_equal_one_input_except_under_vanilla(models, weighting):
    """n times the same input: every pair is the same, so any mean of them is the one-input result."""
    miso, _ = models
    x = torch.randint(0, 250, (9,), generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, 250, (5,), generator=torch.Generator().manual_seed(2))
    one = run(miso, torch.cat([x, y])[None], RowLayout.from_lengths([([9], 5)]))[:, 9:]
    three = run(miso, torch.cat([x, x, x, y])[None], RowLayout.from_lengths([([9] * 3, 5)]), weighting=weighting)
    difference = (three[:, 27:] - one).abs().max().item()
    if weighting == "vanilla":
        assert difference > 1e-3  # three times the input's share: the output's own is diluted (equation 6)
    else:
        assert difference < 1e-12


def test_packed_row_equals_each_sample_alone(models):
    miso, _ = models
    ids = torch.randint(0, 250, (1, 43), generator=torch.Generator().manual_seed(3))
    packed = run(miso, ids, RowLayout.from_lengths([([7, 12, 5], 9), ([4], 6)]))
    first = run(miso, ids[:, :33], RowLayout.from_lengths([([7, 12, 5], 9)]))
    second = run(miso, ids[:, 33:], RowLayout.from_lengths([([4], 6)]))
    torch.testing.assert_close(packed, torch.cat([first, second], dim=1), rtol=0, atol=1e-12)


def test_shifted_positions_change_nothing_because_rotary_positions_are_relative(models):
    miso, _ = models
    layout = RowLayout.from_lengths([([7, 5], 4)])
    ids = torch.randint(0, 250, (1, 16), generator=torch.Generator().manual_seed(4))
    arguments = {"miso": MisoArguments(layout), "use_cache": False}
    here = miso(ids, position_ids=layout.position_ids[None], **arguments).logits
    later = miso(ids, position_ids=layout.position_ids[None] + 100, **arguments).logits
    torch.testing.assert_close(here, later, rtol=0, atol=1e-5)  # transformers' rotary tables are float32


def test_padded_batch_is_refused_instead_of_silently_wrong(models):
    miso, _ = models
    ids = torch.zeros((2, 8), dtype=torch.long)
    layout = RowLayout.from_lengths([([4], 4)])
    message = "takes one packed row, of the 8 tokens that its layout describes, got queries"
    with pytest.raises(ValueError, match=message):
        miso(ids, attention_mask=torch.ones_like(ids), miso=MisoArguments(layout), use_cache=False)


def test_row_longer_than_its_layout_is_refused(models):
    arguments = {"miso": MisoArguments(RowLayout.from_lengths([([4], 4)])), "use_cache": False}
    with pytest.raises(ValueError, match="of the 8 tokens that its layout describes"):
        models[0](torch.zeros((1, 9), dtype=torch.long), **arguments)


def test_mask_of_the_caller_s_own_is_refused_instead_of_silently_dropped(models):
    miso, _ = models
    mask = torch.zeros((1, 1, 8, 8), dtype=torch.float64)
    arguments = {"miso": MisoArguments(RowLayout.from_lengths([([4], 4)])), "use_cache": False}
    with pytest.raises(ValueError, match="no masks but its layout's"):
        miso(torch.zeros((1, 8), dtype=torch.long), attention_mask=mask, **arguments)


def test_forward_without_a_layout_is_refused(models):
    with pytest.raises(ValueError, match=r"attention 'miso' needs model\(..., miso=MisoArguments\(layout\)\)"):
        models[0](torch.zeros((1, 8), dtype=torch.long))


# Configurations write into what they are given: each gets a copy.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 48,
    "long_factor": [2.0] * 48,
    "original_max_position_embeddings": 4096,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}

EXACT = {
    "llama": LlamaConfig(),
    "window": MistralConfig(sliding_window=1024),
    "softcap-and-window": Gemma2Config(sliding_window=512),
    "qwen2-window-switched-off": Qwen2Config(sliding_window=128, use_sliding_window=False),
    "dynamic-rope-below-its-limit": LlamaConfig(rope_parameters={**DYNAMIC}, max_position_embeddings=2048),
    "longrope-below-its-limit": Phi3Config(
        rope_parameters={**LONGROPE}, max_position_embeddings=131072, pad_token_id=None
    ),
    "temperature-tuning-below-its-limit": Llama4TextConfig(floor_scale=8192, layer_types=["full_attention"] * 48),
    "llama-4-scaling-below-its-limit": Ministral3Config(),
}


@pytest.mark.parametrize("config", EXACT.values(), ids=EXACT)
def test_models_with_rotary_attention_are_taken(config):
    check_model(config, max_length=2048)


REFUSED = {
    "learned-positions": (GPT2Config(), "gpt2: its positions are not rotary"),
    "alibi": (BloomConfig(), "bloom: its positions are not rotary"),
    "dynamic-rope": (
        LlamaConfig(rope_parameters={**DYNAMIC}, max_position_embeddings=2047),
        "rope_type='dynamic' depends on the row's length or position beyond 2047 tokens, and rows may have 2048 here "
        "(a recipe: data.max_length)",
    ),
    "longrope": (
        Phi3Config(rope_parameters={**LONGROPE}, original_max_position_embeddings=1024, pad_token_id=None),
        "rope_type='longrope' depends on the row's length or position beyond 1024 tokens",
    ),
    "llama-4-scaling": (
        Ministral3Config(rope_parameters=Ministral3Config().rope_parameters | {"original_max_position_embeddings": 9}),
        "llama_4_scaling_beta depends on the row's length or position beyond 9 tokens",
    ),
    "chunked-attention": (Llama4TextConfig(), "layers of type chunked_attention are not attention over all keys"),
    "linear-attention": (MiniMaxConfig(), "layers of type linear_attention are not attention over all keys"),
    "convolution": (Lfm2Config(), "its convolutions or recurrent layers run on from input to input"),
    "state-space": (MambaConfig(), "its attention does not go through transformers' AttentionInterface"),
    "attention-sinks": (GptOssConfig(), "gpt_oss: its attention sinks take part in each softmax"),
    "window-in-the-mask": (PhimoeConfig(), "its sliding window is part of the mask alone"),
    "no-keyword-arguments": (NemotronConfig(), "its layers do not hand keyword arguments"),
    "encoder-decoder": (BartConfig(), "it is an encoder-decoder"),
    "encoder": (ViTConfig(), "transformers has no causal language model for it"),
    "not-causal": (Gemma3TextConfig(use_bidirectional_attention=True), "its attention is not causal"),
    "dropout": (LlamaConfig(attention_dropout=0.1), "attention_dropout=0.1: set it to 0"),
}


@pytest.mark.parametrize(("config", "reason"), REFUSED.values(), ids=REFUSED)
def test_models_that_would_not_be_exact_are_refused_by_name(config, reason):
    with pytest.raises(UnsupportedModelError, match="MISO attention would not be exact for") as caught:
        check_model(config, max_length=2048)
    assert reason in str(caught.value)


def test_without_a_length_no_limit_is_safe():
    with pytest.raises(UnsupportedModelError, match=r"position beyond 2048 tokens$"):
        check_model(LlamaConfig(rope_parameters={**DYNAMIC}, max_position_embeddings=2048))


def test_rotary_kind_that_is_not_known_is_refused():
    config = LlamaConfig()
    config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1e4}
    with pytest.raises(UnsupportedModelError, match="rope_type='spiral' is not known to rest on differences"):
        check_model(config)


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE | {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}])
def test_below_its_limit_length_dependent_rotary_scaling_is_exact_and_above_it_is_not(rope):
    """What `check_model` rests on: at 24 positions nothing is scaled, from the 25th on everything is."""
    register()
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=24,
        rope_parameters=rope | {"original_max_position_embeddings": 24},
    )
    model = make_model(config)
    model.set_attn_implementation(ATTENTION_NAME)
    ids = torch.randint(0, 64, (1, 20), generator=torch.Generator().manual_seed(0))
    layout = RowLayout.from_lengths([([16], 4)])
    arguments = {"miso": MisoArguments(layout), "use_cache": False}
    first, last, beyond = (
        model(ids, position_ids=layout.position_ids[None] + start, **arguments).logits for start in (0, 4, 5)
    )
    torch.testing.assert_close(last, first, rtol=0, atol=1e-5)  # transformers' rotary tables are float32
    assert (beyond - first).abs().max() > 1e-3


KERNELS = {
    "cpu": (LlamaConfig(), "cpu", torch.float32, "flash (CPU)"),
    "cuda": (LlamaConfig(), "cuda", torch.bfloat16, "flash (CUDA)"),
    "cuda-latent-heads": (DeepseekV3Config(), "cuda", torch.bfloat16, "flash (CUDA)"),
    "cuda-float32": (LlamaConfig(), "cuda", torch.float32, "on CUDA it takes bfloat16 and float16, not float32"),
    "cuda-large-heads": (
        LlamaConfig(head_dim=512),
        "cuda",
        torch.bfloat16,
        "on CUDA it takes head sizes up to 256 that 8 divides, not 512",
    ),
    "softcap": (Gemma2Config(), "cpu", torch.float32, "it does not cap scores (softcap 50)"),
    "other-device": (LlamaConfig(), "mps", torch.float32, "there is no flash kernel for mps here"),
}


@pytest.mark.parametrize(("config", "device", "dtype", "expected"), KERNELS.values(), ids=KERNELS)
def test_kernel_is_named_with_the_reason_where_it_is_not_flash(monkeypatch, config, device, dtype, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    asked = (config, "auto", torch.device(device), dtype)
    if expected.startswith("flash"):
        assert describe_kernel(*asked) == expected
        return
    assert describe_kernel(*asked) == f"eager, since 'flash' cannot be used: {expected}"
    with pytest.raises(ValueError, match=re.escape(f"kernel 'flash' cannot be used: {expected}; use 'auto' or")):
        describe_kernel(config, "flash", torch.device(device), dtype)


def test_forced_kernels_are_named_as_they_are():
    for name in ("eager", "reference"):
        assert describe_kernel(Gemma2Config(), name, torch.device("cpu"), torch.float32) == name
    with pytest.raises(ValueError, match="kernel 'fast' is not one of auto, flash, eager, reference"):
        describe_kernel(LlamaConfig(), "fast", torch.device("cpu"), torch.float32)
