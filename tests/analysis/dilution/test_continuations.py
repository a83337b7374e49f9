from math import exp

import pytest
import torch
from transformers import AutoModelForCausalLM

from misotune.analysis.dilution.continuations import (
    PLAIN,
    RESPONSE,
    Continuation,
    continue_rows,
    fluency,
    repeated_4grams,
)
from misotune.analysis.rows import load_rows
from misotune.layout import ChatTemplate


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return load_rows(None, ChatTemplate(tokenizer), limit=1, max_length=700).items


@pytest.fixture(scope="module")
def texts(model, tokenizer, rows):
    return {
        (text.num_inputs, text.weighting): text
        for text in continue_rows(model, tokenizer, rows, (1, 2), max_new_tokens=12)
    }


def prompt_of(tokenizer, row):
    messages = [dict(message) for message in row.sample.inputs[0].messages]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]


def test_there_is_a_text_for_each_n_and_weighting_beside_the_response(texts):
    assert list(texts) == [(0, RESPONSE), (1, PLAIN), (2, "vanilla"), (2, "uniform"), (2, "fid")]


def test_the_plain_text_is_the_stock_models_greedy_one(model, tokenizer, rows, texts):
    ids = prompt_of(tokenizer, rows[0])
    stock = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert texts[1, PLAIN].text == tokenizer.decode(stock[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_response_is_cut_to_the_length_of_the_texts(rows, texts):
    response = texts[0, RESPONSE]
    assert response.text == rows[0].sample.output[:12]  # a token of this tokenizer is a byte
    assert (response.num_tokens, response.is_cut) == (12, True)


def test_perplexity_is_the_stock_models_beside_the_first_input_alone(model, tokenizer, rows, texts):
    prompt = prompt_of(tokenizer, rows[0])
    response = torch.tensor([tokenizer(rows[0].sample.output[:12])["input_ids"]])
    labels = torch.cat([torch.full_like(prompt, -100), response], dim=1)
    with torch.no_grad():
        loss = model(torch.cat([prompt, response], dim=1), labels=labels).loss
    assert texts[0, RESPONSE].nll == pytest.approx(loss.item(), abs=1e-5)
    assert fluency([texts[0, RESPONSE]])[0].perplexity == pytest.approx(exp(loss.item()), rel=1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "fid"])
def test_a_repeated_input_changes_no_word_under_uniform_and_fid(model, tokenizer, rows, texts, weighting):
    repeated = continue_rows(model, tokenizer, rows, (3,), max_new_tokens=12, is_repeated=True)
    (text,) = [text for text in repeated if text.weighting == weighting]
    assert text.text == texts[1, PLAIN].text


def test_penalties_of_the_models_own_settings_are_left_out_and_come_back(model, tokenizer, rows, texts):
    model.generation_config.repetition_penalty = 5.0
    try:
        again = continue_rows(model, tokenizer, rows, (1,), max_new_tokens=12)
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config.repetition_penalty = None
    assert again[1] == texts[1, PLAIN]


def make_text(**values):
    usual = {"row": "a", "num_inputs": 2, "weighting": "fid", "text": "", "num_tokens": 1, "is_cut": False}
    return Continuation(**usual | {"nll": 0.0, "repeated_4grams": 0.0} | values)


def test_perplexity_of_several_texts_is_over_their_tokens():
    found = fluency(
        [
            make_text(num_tokens=3, nll=1.0, repeated_4grams=0.5, is_cut=True),
            make_text(num_tokens=1, nll=3.0),
            make_text(weighting="vanilla", nll=2.0),
        ]
    )
    assert [(entry.num_inputs, entry.weighting) for entry in found] == [(2, "fid"), (2, "vanilla")]
    assert found[0].perplexity == pytest.approx(exp((3 * 1.0 + 1 * 3.0) / 4))
    assert (found[0].repeated_4grams, found[0].num_tokens, found[0].num_cut) == (0.25, 2.0, 1)


@pytest.mark.parametrize(
    ("ids", "share"), [([1, 2, 3], 0.0), ([1, 2, 3, 4, 5, 6], 0.0), ([7] * 13, 0.9), ([1, 2, 3, 4] * 2, 0.2)]
)
def test_repeated_4grams_are_those_that_stood_there_before(ids, share):
    assert repeated_4grams(ids) == pytest.approx(share)
