import shutil

import pytest
import torch

from misotune.errors import RunError, UsageError
from misotune.evaluation.generation import ChatModel, generate_responses, load_chat_model

PROMPTS = [
    "Hi",
    "Name three rivers of the north and say why",
    "Why?",
    "A rhyme on soup, please",
    "Go on then",
]
NUM_NEW = 12


@pytest.fixture
def chat_model(tiny_model_dir):
    """The tiny model with larger weights, and without an end of its own.

    As it is initialised, it answers every prompt alike.
    """
    found = load_chat_model(str(tiny_model_dir))
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if "norm" not in name:
                parameter.mul_(10)
        found.model.get_input_embeddings().weight[list(found.eos_ids)] = 0.0
    return found


def greedy_ids(chat_model: ChatModel, prompt: str, num_new: int) -> list[int]:
    """Greedy decoding by the definition: one row, no cache, no padding."""
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = chat_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + num_new and (len(ids) == start or ids[-1] not in chat_model.eos_ids):
        with torch.no_grad():
            ids = [*ids, int(chat_model.model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[start:]


def generate(chat_model, prompts=PROMPTS, **options):
    return generate_responses(chat_model, prompts, **{"max_new_tokens": NUM_NEW, **options})


def test_padded_batches_equal_greedy_decoding_one_by_one(chat_model):
    expected = [
        chat_model.tokenizer.decode(greedy_ids(chat_model, prompt, NUM_NEW), skip_special_tokens=True)
        for prompt in PROMPTS
    ]
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 5, None):
        assert generate(chat_model, batch_size=batch_size).responses == expected


def test_a_response_stops_before_any_end_of_sequence_id(chat_model):
    ids = greedy_ids(chat_model, PROMPTS[0], NUM_NEW)
    end = next(i for i in reversed(range(1, NUM_NEW)) if ids[i] not in ids[:i])
    stopping = ChatModel("m", chat_model.model, chat_model.tokenizer, (chat_model.eos_ids[0], ids[end]))
    found = generate(stopping, PROMPTS[:1])
    assert found.responses == [chat_model.tokenizer.decode(ids[:end], skip_special_tokens=True)]
    assert (found.account.num_cut, found.account.num_new_tokens) == (0, end + 1)


def test_the_templates_end_of_turn_ends_a_response_although_only_another_is_declared(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        path = tmp_path / "base" / name
        path.write_text(path.read_text().replace('"<|im_end|>"', '"<|pad|>"').replace('_id": 257', '_id": 258'))
    found = load_chat_model(str(tmp_path / "base"))
    assert found.tokenizer.eos_token_id == 258
    assert found.eos_ids == (258, 257)


def test_sampling_settings_and_penalties_of_the_model_are_not_used(chat_model):
    expected = generate(chat_model).responses
    config = chat_model.model.generation_config
    config.do_sample, config.temperature, config.repetition_penalty = True, 5.0, 9.0
    assert generate(chat_model).responses == expected
    assert chat_model.model.generation_config is config


def test_progress_counts_tokens_at_every_step_and_ends_complete(chat_model):
    seen = []
    found = generate(chat_model, batch_size=2, on_progress=seen.append)
    assert len(seen) >= 3 * NUM_NEW
    assert [p.num_new_tokens for p in seen] == sorted(p.num_new_tokens for p in seen)
    assert (seen[-1].num_done, seen[-1].num_prompts) == (5, 5)
    assert seen[-1].num_new_tokens == found.account.num_new_tokens


def test_settings_and_cut_responses_are_recorded(chat_model):
    found = generate(chat_model, max_new_tokens=2, batch_size=3)
    assert (found.settings.max_new_tokens, found.settings.batch_size) == (2, 3)
    assert (found.settings.dtype, found.settings.decoding) == ("float32", "greedy")
    assert found.account.num_cut == len(PROMPTS)


def test_a_context_that_is_too_short_stops_before_generation(chat_model):
    with pytest.raises(RunError, match=r"the longest prompt \(\d+ tokens\) and 4096 new .*use --max-new-tokens \d+"):
        generate(chat_model, max_new_tokens=4096)


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
    with pytest.raises(RunError, match="its tokenizer has no chat template"):
        load_chat_model(str(tmp_path / "base"))


def test_broken_weights_are_named(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(RunError, match="broken: the folder's model cannot be loaded"):
        load_chat_model(str(tmp_path / "broken"))
