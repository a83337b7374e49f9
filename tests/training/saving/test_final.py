"""The probe's logits: the weights as saved, computed in float32, without the whole model in float32."""

import copy

import pytest
import torch
from tests.attention.test_every_architecture import spread, tiny_config
from tests.attention.tiny_models import make_model
from transformers import LlamaConfig

from misotune.attention import ATTENTION_NAME, register
from misotune.training.saving.final import PROBE_LOGITS, last_logits_in_float32

TYPES = ("llama", "gemma3_text", "qwen3_moe", "deepseek_v3", "gpt_neox", "granite")


def narrow_model(model_type):
    register()
    model = make_model(tiny_config(model_type)).bfloat16()
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def logits_of_a_wide_copy(model, ids):
    wide = copy.deepcopy(model)
    for weight in wide.parameters():
        weight.data = weight.data.float()
    wide.set_attn_implementation("eager")
    with torch.no_grad():
        return wide(input_ids=ids, use_cache=False).logits[0, -PROBE_LOGITS:]


@pytest.mark.parametrize("model_type", [*TYPES, "dbrx"])
def test_logits_are_those_of_a_model_in_float32(model_type):
    model, ids = narrow_model(model_type), spread(11, 1)
    expected = logits_of_a_wide_copy(model, ids)
    logits = last_logits_in_float32(model, ids)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("model_type", TYPES)
def test_one_layer_at_a_time_is_in_float32(model_type):
    model, ids = narrow_model(model_type), spread(11, 1)
    before = [weight.data for weight in model.parameters()]
    most = 0

    def count(*_):
        nonlocal most
        own = sum(weight.nbytes for weight in model.parameters() if weight.dtype == torch.float32)
        most = max(most, own)

    for module in model.modules():
        module.register_forward_pre_hook(count)
        module.register_forward_hook(count)
    last_logits_in_float32(model, ids)
    largest = max(2 * sum(w.nbytes for w in module._parameters.values() if w is not None) for module in model.modules())
    assert 0 < most <= largest
    # Neither rounded twice nor copied: they are the tensors that they were.
    assert all(weight.data_ptr() == old.data_ptr() for weight, old in zip(model.parameters(), before, strict=True))


def test_an_error_in_the_model_leaves_the_weights_as_they_were():
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=9)
    model = make_model(config).bfloat16()

    def fail(*_):
        raise ValueError("no")

    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="no"):
        last_logits_in_float32(model, torch.tensor([[1, 2]]))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
