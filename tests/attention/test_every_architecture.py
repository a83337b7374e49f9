"""Every causal language model of the installed transformers is either exact under MISO attention or refused by name.

Each is built tiny, in float64, with windows that bind. What is taken must equal, within transformers' own float32
parts (norms, eager softmax, rotary tables: 5e-6 of the largest logit at most, where a real difference is above 1e-4):

    packed       the stock model on each of two samples in one row: nothing mixes tokens but attention
    equal        three times the same input, uniform: the stock model on one
    shifted      positions 37 later: only differences of positions count
    literal      the equations, on inputs of different lengths
"""

from copy import deepcopy

import pytest
import torch
from tests.attention.tiny_models import Literal, make_model, register_literal
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from misotune.attention import ATTENTION_NAME, MisoArguments, check_model, register
from misotune.errors import UnsupportedModelError
from misotune.layout import RowLayout

# What each configuration takes of this, if it has the key.
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "sliding_window": 5,
    "use_sliding_window": True,
    "max_window_layers": 0,
    "global_attn_every_n_layers": 2,
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
    "kv_channels": 8,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "qk_head_dim": 8,
    "v_head_dim": 12,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "zero_expert_num": 2,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    # Gemma's parts
    "global_head_dim": 8,
    "num_global_key_value_heads": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 64,
    "laurel_rank": 4,
    "num_kv_shared_layers": 0,
}
CORE = {
    key: SMALL[key]
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
}
LATENT = {"head_dim": 4, "num_key_value_heads": 4}
FULL = {"layer_types": ["full_attention"] * 4}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
OWN = {
    "axk1": LATENT,
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROTARY | {"mrope_section": [2, 1, 1]}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "fuyu": {"text_config": {"model_type": "persimmon"} | CORE},
    "gemma3": {"vision_config": {"model_type": "siglip_vision_model", "image_size": 56} | CORE},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gemma4_text": MIXED | {"num_kv_shared_layers": 2},
    "gemma4_unified_text": MIXED | {"num_kv_shared_layers": 2},
    "glm4_moe_lite": LATENT,
    "got_ocr2": {"text_config": {"model_type": "qwen2", "num_key_value_heads": 2} | CORE},
    "granitemoehybrid": FULL | {"mamba_n_heads": 4, "mamba_d_head": 16},
    "longcat_flash": LATENT,
    "minicpm3": LATENT,
    "moss_transcribe_diarize": {"text_config": {"model_type": "qwen3", "head_dim": 8, "num_key_value_heads": 2} | CORE},
    "youtu": LATENT,
}
# Exact; all other model types are refused.
TAKEN = """
    afmoe apertus arcee aria_text axk1 bitnet cohere cohere2 cohere2_moe cohere_compass_text cwm dbrx deepseek_v2
    deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo fuyu gemma gemma2 gemma3
    gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite
    got_ocr2 gpt_neox granite granitemoe granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense
    hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 laguna llama longcat_flash mellum
    minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral mllama modernbert-decoder
    moss_transcribe_diarize nanochat olmo olmo2 olmo3 olmoe persimmon phi phi3 phi4_multimodal qwen2 qwen2_moe qwen3
    qwen3_moe seed_oss smollm3 solar_open starcoder2 vaultgemma youtu
""".split()  # noqa: SIM905 - a hundred words read better without quotes
# What some of the others cannot be configured without.
MUSIC = {
    "text_encoder": {"model_type": "t5"},
    "audio_encoder": {"model_type": "encodec"},
    "decoder": {"model_type": "musicgen_decoder"},
}
REQUIRED = {
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    },
    "musicgen": MUSIC,
    "musicgen_melody": MUSIC | {"decoder": {"model_type": "musicgen_melody_decoder"}},
}
INSTALLED = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING))
MAX_LENGTH = 64
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def tiny_config(model_type):
    return shrink(CONFIG_MAPPING[model_type], OWN.get(model_type, {}))


def shrink(config_class, own):
    keys = {key for base in config_class.__mro__ for key in getattr(base, "__annotations__", {})}
    values = {key: value for key, value in SMALL.items() if key in keys | set(config_class.attribute_map)}
    parts = {
        key: shrink(part, {})
        for key, part in config_class.sub_configs.items()
        if key not in own and issubclass(part, PretrainedConfig)
    }
    return config_class(**values | parts | own)


def spread(lengths, seed):
    return torch.randint(3, 64, (1, lengths), generator=torch.Generator().manual_seed(seed))


class Model:
    """A model whose logits can be had under each attention."""

    def __init__(self, config):
        self._model = make_model(config)

    def stock(self, ids):
        return self._logits("eager", ids)

    def miso(self, ids, layout, shift=0):
        positions = layout.position_ids[None] + shift
        return self._logits(ATTENTION_NAME, ids, position_ids=positions, miso=MisoArguments(layout))

    def literal(self, ids, layout):
        samples = [([range(*x) for x in sample.inputs], range(*sample.output)) for sample in layout.samples]
        return self._logits("literal", ids, position_ids=layout.position_ids[None], literal=Literal(samples))

    def _logits(self, attention, ids, **arguments):
        self._model.set_attn_implementation(attention)
        with torch.no_grad():
            return self._model(input_ids=ids, use_cache=False, **arguments).logits


def assert_same(ours, expected):
    torch.testing.assert_close(ours / expected.abs().max(), expected / expected.abs().max(), **TOLERANCE)


@pytest.mark.parametrize("model_type", [name for name in TAKEN if name in INSTALLED])
def test_what_is_taken_is_exact(model_type):
    config = tiny_config(model_type)
    check_model(config, MAX_LENGTH)
    register()
    register_literal()
    model = Model(config)
    first, second, x, y = spread(17, 1), spread(11, 2), spread(9, 3), spread(6, 4)
    layout = RowLayout.from_lengths([([12], 5), ([4], 7)])
    packed = torch.cat([first, second], dim=1)
    apart = torch.cat([model.stock(first), model.stock(second)], dim=1)
    assert_same(model.miso(packed, layout), apart)
    assert_same(model.miso(packed, layout, shift=37), apart)
    three = model.miso(torch.cat([x, x, x, y], dim=1), RowLayout.from_lengths([([9] * 3, 6)]))
    assert_same(three[:, 27:], model.stock(torch.cat([x, y], dim=1))[:, 9:])
    layout = RowLayout.from_lengths([([7, 12, 4], 5)])
    ids = spread(layout.num_tokens, 5)
    assert_same(model.miso(ids, layout), model.literal(ids, layout))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # as some are imported
@pytest.mark.parametrize("model_type", [name for name in INSTALLED if name not in TAKEN])
def test_all_others_are_refused_by_name(model_type):
    config = CONFIG_MAPPING[model_type](**deepcopy(REQUIRED.get(model_type, {})))
    text = config.get_text_config(decoder=True).model_type
    if model_type == "gemma3n":  # around gemma3n_text; its image encoder needs a library that is not at hand
        check_model(config, MAX_LENGTH)
        return
    with pytest.raises(UnsupportedModelError, match=f"MISO attention would not be exact for {text}: [a-z]"):
        check_model(config, MAX_LENGTH)
