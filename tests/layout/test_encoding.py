"""Which tokens are inputs, which are the output, and which are trained."""

import numpy as np
import pytest
from tests.conftest import CHATML, make_tokenizer

from misotune.errors import LayoutError, UsageError
from misotune.layout import ChatTemplate, Chunking, build_row, draw_chunks, encode_sample
from misotune.layout.template import read_template
from misotune.samples import Sample, SampleInput


def make_sample(prompts=("Say hi.",), output="Hi!", **fields):
    inputs = tuple(SampleInput("full", ({"role": "user", "content": text},)) for text in prompts)
    return Sample("r1", "test", "", inputs, output, **fields)


def decoded(tokenizer, ids):
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def test_output_is_generation_prompt_response_and_end_of_turn(tokenizer):
    encoded = encode_sample(make_sample(), ChatTemplate(tokenizer))
    assert decoded(tokenizer, encoded.inputs[0]) == "<|im_start|>user\nSay hi.<|im_end|>\n"
    assert decoded(tokenizer, encoded.output) == "<|im_start|>assistant\nHi!<|im_end|>"
    assert decoded(tokenizer, encoded.output[encoded.is_trained]) == "Hi!<|im_end|>"


def test_inputs_and_output_together_are_what_the_template_renders(tokenizer):
    template = ChatTemplate(tokenizer)
    sample = make_sample()
    messages = [*sample.inputs[0].messages, {"role": "assistant", "content": sample.output}]
    encoded = encode_sample(sample, template)
    whole = template.encode(messages, add_generation_prompt=False)
    got = np.concatenate([*encoded.inputs, encoded.output]).tolist()
    assert whole[: len(got)] == got
    assert tokenizer.decode(whole[len(got) :]) == "\n"


def test_all_inputs_share_one_output(tokenizer):
    encoded = encode_sample(make_sample(("A", "A but longer", "B")), ChatTemplate(tokenizer))
    assert len(encoded.inputs) == 3
    assert encoded.num_tokens == encoded.num_input_tokens + len(encoded.output)


def test_template_without_generation_prompt_gives_its_fixed_ending():
    inst = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = make_tokenizer(inst)
    encoded = encode_sample(make_sample(("Say hi.", "Say hi now.")), ChatTemplate(tokenizer))
    assert decoded(tokenizer, encoded.inputs[0]) == "[INST] Say hi."
    assert decoded(tokenizer, encoded.output) == " [/INST]Hi!<|im_end|>"
    assert decoded(tokenizer, encoded.output[encoded.is_trained]) == "Hi!<|im_end|>"


def test_every_assistant_turn_of_a_chat_is_trained(tokenizer):
    chat = (
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    )
    sample = Sample("c", "test", "", (SampleInput("full", chat),), "4", history_loss=True)
    encoded = encode_sample(sample, ChatTemplate(tokenizer))
    assert decoded(tokenizer, encoded.output[encoded.is_trained]) == "2<|im_end|>4<|im_end|>"
    assert decoded(tokenizer, encoded.inputs[0]).endswith("1+1?<|im_end|>\n")
    assert not encoded.can_chunk


def test_history_without_history_loss_is_not_trained(tokenizer):
    chat = (
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    )
    encoded = encode_sample(Sample("c", "t", "", (SampleInput("full", chat),), "4"), ChatTemplate(tokenizer))
    assert decoded(tokenizer, encoded.output[encoded.is_trained]) == "4<|im_end|>"


def test_row_predicts_each_trained_token_from_the_one_before(tokenizer):
    samples = [encode_sample(make_sample(("A", "BB"), out), ChatTemplate(tokenizer)) for out in ("x", "yz")]
    row = build_row(samples)
    assert row.targets.tolist() == row.input_ids[0, row.predictors + 1].tolist()
    assert tokenizer.decode(row.targets.tolist()) == "x<|im_end|>yz<|im_end|>"
    assert row.input_ids.shape == row.position_ids.shape == (1, row.layout.num_tokens)


def test_shares_of_roles_reach_the_samples_of_a_row(tokenizer):
    entries = [SampleInput(role, ({"role": "user", "content": role},)) for role in ("full", "constraint", "base")]
    samples = [Sample("r", "test", "", tuple(inputs), "x") for inputs in (entries, entries[:1])]
    encoded = [encode_sample(sample, ChatTemplate(tokenizer)) for sample in samples]
    assert [sample.roles for sample in encoded] == [("full", "constraint", "base"), ("full",)]
    layout = build_row(encoded, shares={"full": 0.5}).layout
    assert [sample.weights for sample in layout.samples] == [(0.5, 0.25, 0.25), (1.0,)]
    assert [sample.weights for sample in build_row(encoded).layout.samples] == [(), ()]


REFUSED = {
    "never-ends": (
        CHATML.replace("<|im_end|>", "</s>"),
        "does not end the assistant's turn with a special token",
    ),
    "rewrites-prompt": (
        CHATML + "{% if messages[-1]['role'] == 'assistant' %}!{% endif %}",
        "does not end the assistant's turn with a special token",
    ),
    "other-header": (
        CHATML.replace("assistant\n", "model\n"),
        "the prompt's tokens are not the first tokens of prompt and response",
    ),
    "no-ending": (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}",
        "no generation prompt and no fixed ending of a user turn",
    ),
    "raises": ("{{ raise_exception('system role not supported') }}", "refuses the conversation: system role"),
    "two-bos": ("<|im_start|><|im_start|>" + CHATML, "begins with two BOS tokens"),
}


@pytest.mark.parametrize(("template", "reason"), REFUSED.values(), ids=REFUSED)
def test_without_proof_the_row_is_refused_with_the_reason(template, reason):
    tokenizer = make_tokenizer(template)
    tokenizer.bos_token = "<|im_start|>"
    with pytest.raises(LayoutError, match=reason):
        encode_sample(make_sample(), ChatTemplate(tokenizer))


def test_model_without_template_is_refused_with_the_cure():
    with pytest.raises(UsageError, match=r"set model.chat_template to one of chatml, tulu or to a .jinja file"):
        ChatTemplate(make_tokenizer(None))


def test_unknown_template_is_named():
    with pytest.raises(UsageError, match="'tulip' is neither a file nor one of chatml, tulu"):
        read_template("tulip")


@pytest.mark.parametrize("name", ["chatml", "tulu"])
def test_shipped_templates_can_be_proved(name):
    tokenizer = make_tokenizer(read_template(name))
    tokenizer.bos_token = "<|pad|>"
    encoded = encode_sample(make_sample(("A", "B")), ChatTemplate(tokenizer))
    assert decoded(tokenizer, encoded.output[encoded.is_trained]) == "Hi!<|im_end|>"


def test_chunks_lose_no_token_and_are_near_equal(tokenizer):
    sample = encode_sample(make_sample(("A sentence of some length.",)), ChatTemplate(tokenizer))
    cut = Chunking({4: 1.0}, seed=0).cut(sample, epoch=0)
    assert len(cut.inputs) == 4
    assert np.concatenate(cut.inputs).tolist() == sample.inputs[0].tolist()
    assert max(map(len, cut.inputs)) - min(map(len, cut.inputs)) <= 1


def test_chunk_prefix_system_repeats_the_opening(tokenizer):
    sample = encode_sample(make_sample(("A sentence of some length.",)), ChatTemplate(tokenizer))
    chunking = Chunking({3: 1.0}, seed=0, prefix="system")
    cut = chunking.cut(sample, epoch=0)
    assert all(decoded(tokenizer, chunk).startswith("<|im_start|>user\n") for chunk in cut.inputs)
    assert cut.num_tokens == sample.num_tokens + chunking.room(sample)


def test_chunk_draws_repeat_and_follow_their_probabilities():
    probabilities = {1: 0.55, 2: 0.15, 3: 0.15, 4: 0.15}
    draws = [draw_chunks(probabilities, 0, 1, f"row-{i}") for i in range(4000)]
    assert draws == [draw_chunks(probabilities, 0, 1, f"row-{i}") for i in range(4000)]
    assert draws != [draw_chunks(probabilities, 0, 2, f"row-{i}") for i in range(4000)]
    for number, probability in probabilities.items():
        # 4,000 draws: the standard error of a share is below 0.008; four of them.
        assert abs(draws.count(number) / 4000 - probability) < 0.032
