import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
# The windows are shorter than the inputs of the tests, and the softcap is near their scores: both are at work.
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral-window": MistralConfig(**SIZES, sliding_window=12),
    "gemma2-softcap": Gemma2Config(
        **SIZES, sliding_window=12, layer_types=LAYER_TYPES, attn_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=12, layer_types=LAYER_TYPES, query_pre_attn_scalar=8),
}


def make_model(name: str, **changes):
    """A random model in float64, with weights so large that its responses differ from input to input."""
    torch.manual_seed(0)
    config = type(CONFIGS[name]).from_dict({**CONFIGS[name].to_dict(), **changes})
    # Stock attention in float64, but for scores with a softcap, which it knows in eager alone, softmax in float32.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" not in parameter_name:
                parameter.mul_(10)
    return model


@pytest.fixture(scope="session", params=CONFIGS)
def any_model(request):
    return make_model(request.param)


@pytest.fixture
def llama():
    return make_model("llama")
