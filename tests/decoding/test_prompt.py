import pytest

from misotune.decoding.prompt import encode_prompt
from misotune.errors import UsageError
from misotune.layout import ChatTemplate, encode_sample
from misotune.samples import Sample, SampleInput

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]


def user(text):
    return {"role": "user", "content": text}


def test_inputs_and_generation_prompt_are_the_tokens_of_training(tokenizer):
    chats = (tuple(CHAT), (user("Name a river."),))
    sample = Sample("1", "", "", tuple(SampleInput("full", messages) for messages in chats), "The Elbe.")
    trained = encode_sample(sample, ChatTemplate(tokenizer))
    prompt = encode_prompt([CHAT, "Name a river."], tokenizer)
    assert [list(x) for x in prompt.inputs] == [x.tolist() for x in trained.inputs]
    assert list(prompt.generation_prompt) == trained.output[~trained.is_trained].tolist()


@pytest.mark.parametrize(
    ("prefix", "texts"),
    [
        ("Be brief.", ["Be brief.\n\nHi", "Be brief.\n\nWhy?"]),
        ("Be brief: ", ["Be brief: Hi", "Be brief: Why?"]),
        ("Be brief.\n", ["Be brief.\nHi", "Be brief.\nWhy?"]),
    ],
    ids=["blank-line", "space", "line-break"],
)
def test_a_text_as_prefix_stands_in_front_of_the_first_user_turn(tokenizer, prefix, texts):
    found = encode_prompt(["Hi", CHAT], tokenizer, shared_prefix=prefix)
    chat = [CHAT[0], user(texts[0]), *CHAT[2:]]
    assert found == encode_prompt([texts[0], chat], tokenizer)


def test_messages_as_prefix_stand_in_front_of_the_messages(tokenizer):
    found = encode_prompt(["Why?", [user("How?")]], tokenizer, shared_prefix=CHAT[:3])
    assert found == encode_prompt([[*CHAT[:3], user("Why?")], [*CHAT[:3], user("How?")]], tokenizer)


WRONG = {
    "no-inputs": ([], "inputs must be a list of at least one input"),
    "one-text": ("Why?", "inputs must be a list of at least one input"),
    "assistant-last": (["Hi", CHAT[:3]], "input 2: the last message must be the user's"),
    "no-messages": ([[]], "input 1: the last message must be the user's"),
    "no-content": ([[{"role": "user"}]], "input 1: a message needs 'role' and 'content'"),
    "not-a-message": ([["Hi"]], "input 1: a message needs 'role' and 'content', got 'Hi'"),
    "not-text": ([[{"role": "user", "content": None}]], "input 1: a message's content must be text, got None"),
    "blank": (["Hi", " \n"], "input 2 is empty"),
}


@pytest.mark.parametrize(("inputs", "message"), WRONG.values(), ids=WRONG)
def test_inputs_of_another_form_are_refused_by_number(tokenizer, inputs, message):
    with pytest.raises(UsageError, match=message):
        encode_prompt(inputs, tokenizer)


def test_a_prefix_of_another_form_is_refused(tokenizer):
    with pytest.raises(UsageError, match="shared prefix: a message needs 'role' and 'content'"):
        encode_prompt(["Hi"], tokenizer, shared_prefix=[{"role": "user"}])
