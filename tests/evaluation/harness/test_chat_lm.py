"""lm-eval reads the ids of training, and responses end where the model's do."""

import pytest
from tests.conftest import make_tokenizer

from misotune.evaluation.backends.chat_model import ChatModel
from misotune.evaluation.backends.response_cache import ResponseCache
from misotune.evaluation.harness.chat_lm import ChatLM
from misotune.evaluation.harness.quiet import quiet
from misotune.layout.template import ChatTemplate

TURNS = [
    {"role": "user", "content": "What is 2 and 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 and 3? "},
]
WITH_BOS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_bos():
    """A tokenizer that puts BOS in front of every text, and whose template has it, too."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(WITH_BOS)
    tokenizer.add_special_tokens({"bos_token": "<|pad|>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", bos)]
    )
    assert tokenizer("a")["input_ids"][0] == bos
    return tokenizer


@pytest.fixture(params=["plain", "bos"])
def lm(request, chat_model, tmp_path):
    tokenizer = chat_model.tokenizer if request.param == "plain" else with_bos()
    model = ChatModel(chat_model.name, chat_model.model, tokenizer, chat_model.eos_ids)
    with ResponseCache(tmp_path / "kept.sqlite") as kept, quiet():
        yield ChatLM(model, kept, batch_size=2)


def test_the_ids_are_those_of_training(lm):
    text = lm.apply_chat_template(TURNS)
    expected = ChatTemplate(lm.tokenizer).encode(TURNS, add_generation_prompt=True)
    assert lm.tok_encode(text) == expected
    ids, mask = lm.tok_batch_encode([text, text + "more"])
    assert ids[1].tolist() == lm.tok_encode(text + "more")
    assert ids[0][mask[0].bool()].tolist() == expected
    context, continuation = lm._encode_pair(text, " 6")
    assert context + continuation == lm.tok_encode(text + " 6")
    if lm.tokenizer.bos_token_id is not None:
        assert expected.count(lm.tokenizer.bos_token_id) == 1


def test_lm_evals_own_class_would_read_other_ids(chat_model):
    from lm_eval.models.huggingface import HFLM

    tokenizer = with_bos()
    tokenizer.chat_template = WITH_BOS.replace("{{ bos_token }}", "")
    with quiet():
        theirs = HFLM(pretrained=chat_model.model, tokenizer=tokenizer)
    text = theirs.apply_chat_template(TURNS)
    assert theirs.tok_encode(text) != ChatTemplate(tokenizer).encode(TURNS, add_generation_prompt=True)


def test_a_system_turn_that_the_template_refuses_is_left_out_and_told(lm):
    turns = [{"role": "system", "content": "Add."}, *TURNS]
    text = lm.apply_chat_template(turns)
    refuses = "bos_token" in lm.tokenizer.chat_template
    assert (lm.has_dropped_system, "Add." in text) == (refuses, not refuses)
    assert len(lm.notes()) == int(refuses)
    assert lm.turns[text] == turns


def test_a_response_that_the_task_begins_is_gone_on_with(lm):
    text = lm.apply_chat_template([*TURNS, {"role": "assistant", "content": "It is"}], add_generation_prompt=False)
    assert text.endswith("<|im_start|>assistant\nIt is")


def test_a_response_ends_at_the_models_own_end_and_without_its_penalties(lm, monkeypatch):
    """A tuned base model's generation config may name another end, and penalties."""
    import torch
    from transformers import GenerationConfig

    model = lm._chat_model.model
    monkeypatch.setattr(
        model, "generation_config", GenerationConfig(eos_token_id=5, repetition_penalty=9.0, do_sample=True)
    )
    context, mask = lm.tok_batch_encode([lm.apply_chat_template(TURNS)])
    found = lm._model_generate(context, context.shape[1] + 6, [], attention_mask=mask, do_sample=False, temperature=0.0)
    ids, expected = context[0].tolist(), []
    for _ in range(6):
        with torch.inference_mode():
            expected.append(int(model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
        if expected[-1] in lm._chat_model.eos_ids:
            break
    assert found[0, context.shape[1] :][: len(expected)].tolist() == expected
    assert model.generation_config.repetition_penalty == 9.0
    end = lm._chat_model.eos_ids[0]
    assert lm.tok_decode([*lm.tok_encode("Hi"), end, *lm.tok_encode("more")]) == "Hi"


def test_prompts_that_do_not_fit_are_counted(lm):
    lm.tok_batch_encode(["long text", "a"], left_truncate_len=3)
    assert lm.num_truncated == 1
    assert "1 prompts are too long for the model's 4096 tokens" in lm.notes()[0]
