"""MISO attention inside transformers models, against the stock model and against literal pairs."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from misotune.attention import ATTENTION_NAME, MisoArguments, check_model, register
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
    with pytest.raises(ValueError, match="takes one packed row and no cache"):
        miso(ids, attention_mask=torch.ones_like(ids), miso=MisoArguments(layout), use_cache=False)


def test_forward_without_a_layout_is_refused(models):
    with pytest.raises(ValueError, match=r"attention 'miso' needs model\(..., miso=MisoArguments\(layout\)\)"):
        models[0](torch.zeros((1, 8), dtype=torch.long))


EXACT = {
    "llama": LlamaConfig(),
    "mistral-without-window": MistralConfig(sliding_window=None),
    "mistral-window-not-reached": MistralConfig(sliding_window=4096),
    "qwen2-window-switched-off": Qwen2Config(sliding_window=128, use_sliding_window=False),
}


@pytest.mark.parametrize("config", EXACT.values(), ids=EXACT)
def test_models_with_plain_rotary_attention_are_taken(config):
    check_model(config, max_length=2048)


REFUSED = {
    "learned-positions": (GPT2Config(), "gpt2: its positions are not rotary"),
    "dynamic-rope": (
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        "rope_type='dynamic' depends on the row's length",
    ),
    "window": (MistralConfig(sliding_window=1024), "sliding_window=1024 is shorter than a sample of 2048 tokens"),
    "softcap-and-window": (
        Gemma2Config(sliding_window=512),
        "sliding_window=512 is shorter than a sample of 2048 tokens; lower data.max_length; attn_logit_softcapping=50",
    ),
    "dropout": (LlamaConfig(attention_dropout=0.1), "attention_dropout=0.1: set it to 0"),
}


@pytest.mark.parametrize(("config", "reason"), REFUSED.values(), ids=REFUSED)
def test_models_that_would_not_be_exact_are_refused_by_name(config, reason):
    with pytest.raises(UnsupportedModelError, match="MISO attention would not be exact for") as caught:
        check_model(config, max_length=2048)
    assert reason in str(caught.value)
