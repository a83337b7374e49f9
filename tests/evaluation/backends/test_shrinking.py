"""Batches that shrink against `model.generate` for each prompt on its own."""

import itertools
import random

import pytest
import torch
from transformers import (
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from misotune.evaluation.backends.shrinking import can_shrink, decode_shrinking

VOCAB, NUM_NEW = 48, 72
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.35,
}
CONFIGS = {
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gemma2-sliding": Gemma2Config(**SIZES, sliding_window=16, query_pre_attn_scalar=8),
    "mistral-sliding": MistralConfig(**SIZES, sliding_window=16),
    "qwen3-untied": Qwen3Config(**SIZES, tie_word_embeddings=False),
    "gpt2-learned-positions": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=160, initializer_range=0.35,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    ),
}  # fmt: skip


def make_model(config):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def make_prompts(number):
    draw = random.Random(0)
    lengths = [1, 2, 40, *(draw.randrange(2, 40) for _ in range(number - 3))]
    return [[draw.randrange(VOCAB) for _ in range(length)] for length in lengths]


def generate_alone(model, prompt):
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NUM_NEW, pad_token_id=0)
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()


def cut_at(responses, eos_ids):
    """What `generate` returns with these end ids: an end id has no influence on what comes before it."""
    ends = [next((i for i, token in enumerate(ids) if token in eos_ids), NUM_NEW) for ids in responses]
    return [ids[: end + 1] for ids, end in zip(responses, ends, strict=True)]


def telling_eos_ids(responses):
    """Returns two end ids with which some responses are cut, and the others end at many different places."""
    pairs = itertools.combinations(range(VOCAB), 2)
    lengths = {pair: {len(ids) for ids in cut_at(responses, pair)} for pair in pairs}
    best = max((pair for pair in lengths if NUM_NEW in lengths[pair]), key=lambda pair: len(lengths[pair]))
    assert len(lengths[best]) >= 4, "the responses end alike"
    return list(best)


def decode(model, prompts, eos_ids):
    found, num_tokens = {}, 0
    for num_new, ended in decode_shrinking(model, prompts, max_new_tokens=NUM_NEW, eos_ids=eos_ids):
        num_tokens += num_new
        found.update((row.index, row.new_ids) for row in ended)
    assert num_tokens == sum(map(len, found.values()))
    return [found[index] for index in range(len(prompts))]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shrinking_batch_gives_the_tokens_of_generate_for_each_prompt_alone(name):
    model = make_model(CONFIGS[name])
    assert can_shrink(model)
    prompts = make_prompts(11)
    full = [generate_alone(model, prompt) for prompt in prompts]
    eos_ids = telling_eos_ids(full)
    expected = cut_at(full, eos_ids)
    assert decode(model, prompts, eos_ids) == expected
    assert decode(model, prompts[:1], eos_ids) == expected[:1]


def test_rows_that_wait_to_be_dropped_do_not_touch_the_others():
    """With 22 rows two must have ended before they are dropped."""
    model = make_model(CONFIGS["llama-tied"])
    prompts = make_prompts(22)
    full = [generate_alone(model, prompt) for prompt in prompts]
    eos_ids = telling_eos_ids(full)
    assert decode(model, prompts, eos_ids) == cut_at(full, eos_ids)


def test_a_response_comes_as_soon_as_it_ends():
    model = make_model(CONFIGS["llama-tied"])
    steps = [
        [(row.index, len(row.new_ids)) for row in ended]
        for _, ended in decode_shrinking(model, make_prompts(6), max_new_tokens=NUM_NEW, eos_ids=[3, 5])
    ]
    assert len(steps) <= NUM_NEW
    for number, ended in enumerate(steps, start=1):
        assert all(length == number for _, length in ended)


def test_a_model_with_other_memories_than_keys_cannot_shrink():
    config = Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])
    model = make_model(config)
    assert not can_shrink(model)
