"""Steered responses of the backend `hf`: batches, whole batches and processes against greedy decoding by hand."""

import json

import pytest
import torch
from tests.evaluation.backends.test_hf import NUM_NEW, PROMPTS, chat_model  # noqa: F401 - a fixture

from misotune.attention.steered import steered_attention
from misotune.attention.steering import SteerArguments, Steering
from misotune.errors import UsageError
from misotune.evaluation.backends import hf
from misotune.evaluation.backends.base import generate_responses
from misotune.evaluation.backends.hf import HfBackend
from misotune.evaluation.backends.parallel import ParallelBackend

STEERING = Steering(0.02)


def conversations():
    return [[{"role": "user", "content": prompt}] for prompt in PROMPTS]


def respond(backend, cache, max_new_tokens=NUM_NEW):
    return generate_responses(backend, conversations(), max_new_tokens=max_new_tokens, cache=cache)


def greedy(chat_model, prompt):  # noqa: F811
    """One row, no cache, no padding; a token of this tokenizer is a byte."""
    parts = ["<|im_start|>user\n", prompt, "<|im_end|>\n<|im_start|>assistant\n"]
    ids = [chat_model.tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    start, stop = len(ids[0]), len(ids[0]) + len(ids[1])
    row = [token for part in ids for token in part]
    num_prompt = len(row)
    with torch.no_grad(), steered_attention(chat_model.model, STEERING):
        while len(row) < num_prompt + NUM_NEW and (len(row) == num_prompt or row[-1] not in chat_model.eos_ids):
            is_user = torch.tensor([[start <= i < stop for i in range(len(row))]])
            steer = SteerArguments.of(STEERING, is_user)
            row.append(int(chat_model.model(torch.tensor([row]), steer=steer).logits[0, -1].argmax()))
    new = row[num_prompt:]
    return chat_model.tokenizer.decode([token for token in new if token not in chat_model.eos_ids])


@pytest.mark.parametrize("shrinks", [True, False], ids=["shrinking", "whole"])
def test_a_batch_gives_what_greedy_decoding_by_hand_gives(chat_model, tmp_path, monkeypatch, shrinks):  # noqa: F811
    expected = [greedy(chat_model, prompt) for prompt in PROMPTS]
    if not shrinks:
        monkeypatch.setattr(hf, "can_shrink", lambda model: False)
    before = chat_model.model.config._attn_implementation
    found = respond(HfBackend(chat_model, steering=STEERING), tmp_path / "steered.sqlite")
    assert found.responses == expected
    assert chat_model.model.config._attn_implementation == before
    assert found.responses != respond(HfBackend(chat_model), tmp_path / "plain.sqlite").responses
    assert found.settings["steer"] == 0.02


def test_neither_responses_nor_settings_mix_with_others(chat_model, tmp_path):  # noqa: F811
    steerings = [None, STEERING, Steering(0.03), Steering(0.02, layers=(1,)), Steering(0.02, heads=(2, 3)), STEERING]
    found = [respond(HfBackend(chat_model, steering=steering), tmp_path / "one.sqlite") for steering in steerings]
    assert [x.account.num_kept for x in found] == [0, 0, 0, 0, 0, len(PROMPTS)]
    assert len({json.dumps(x.settings) for x in found}) == 5
    assert found[4].settings["steer_heads"] == "2-3"


def test_alpha_1_is_the_model_as_it_is(chat_model, tmp_path):  # noqa: F811
    found = [respond(HfBackend(chat_model, steering=s), tmp_path / f"{s}.sqlite") for s in (None, Steering(1.0))]
    assert found[0].responses == found[1].responses


def test_processes_give_what_one_gives(tiny_model_dir, tmp_path):
    from misotune.evaluation.backends.chat_model import load_chat_model

    one = HfBackend(load_chat_model(str(tiny_model_dir)), steering=STEERING)
    expected = respond(one, tmp_path / "one.sqlite", 4)
    with ParallelBackend(str(tiny_model_dir), ["cpu", "cpu"], steering=STEERING) as two:
        found = respond(two, tmp_path / "two.sqlite", 4)
    assert found.responses == expected.responses
    assert found.settings["steer"] == 0.02


def test_layers_that_the_model_has_not_are_refused_before_anything_is_asked(chat_model):  # noqa: F811
    with pytest.raises(UsageError, match="--steer-layers 3: the model has layers 1 to 2"):
        HfBackend(chat_model, steering=Steering(0.5, layers=(3,)))
