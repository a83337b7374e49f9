import shutil

import pytest
import torch

from misotune.errors import RunError, UsageError
from misotune.evaluation.backends.chat_model import load_chat_model, load_chat_tokenizer


def test_the_templates_end_of_turn_ends_a_response_although_only_another_is_declared(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        path = tmp_path / "base" / name
        path.write_text(path.read_text().replace('"<|im_end|>"', '"<|pad|>"').replace('_id": 257', '_id": 258'))
    found = load_chat_model(str(tmp_path / "base"))
    assert found.tokenizer.eos_token_id == 258
    assert found.eos_ids == (258, 257)


def test_a_lora_adapter_is_loaded_on_its_base_model(tiny_model_dir, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "final")
    found = load_chat_model(str(tmp_path / "final"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(found.model(ids).logits, tuned.eval()(ids).logits)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype_is_as_asked(tiny_model_dir, dtype, expected):
    assert load_chat_model(str(tiny_model_dir), dtype=dtype).model.dtype == expected


def test_an_unknown_dtype_names_the_allowed_ones(tiny_model_dir):
    with pytest.raises(UsageError, match="dtype 'int8' is not one of auto, bfloat16, float32"):
        load_chat_model(str(tiny_model_dir), dtype="int8")


def test_a_tokenizer_without_chat_template_is_refused(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    for load in (load_chat_model, load_chat_tokenizer):
        with pytest.raises(RunError, match="its tokenizer has no chat template; name a chat model, or a trained run"):
            load(str(tmp_path / "base"))


def test_a_device_whose_memory_does_not_hold_the_model_is_named(tiny_model_dir, monkeypatch):
    def full(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(RunError, match="the memory of cpu does not hold the model; free it, or use another"):
        load_chat_model(str(tiny_model_dir), device="cpu")


def test_the_facts_are_the_models(tiny_model_dir):
    facts = load_chat_model(str(tiny_model_dir), dtype="bfloat16").facts
    assert (facts.name, facts.commit, facts.dtype) == (str(tiny_model_dir), None, "bfloat16")
    assert (facts.device, facts.eos_ids, facts.context) == ("cpu", (257,), 4096)


def test_the_tokenizer_alone_is_that_of_the_model_also_for_an_adapter_without_one(tiny_model_dir, tmp_path):
    import json

    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model_dir)}))
    assert load_chat_tokenizer(str(tmp_path)).get_vocab() == load_chat_tokenizer(str(tiny_model_dir)).get_vocab()


def test_broken_weights_are_named(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(RunError, match="broken: the folder's model cannot be loaded"):
        load_chat_model(str(tmp_path / "broken"))
