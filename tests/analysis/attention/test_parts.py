"""Each token's part; with a tokenizer of bytes, a part's tokens decode to its text."""

import numpy as np
import pytest
from tests.conftest import CHATML, make_tokenizer

from misotune.analysis.attention.parts import PARTS, part_row
from misotune.analysis.attention.prompts import parse_prompt
from misotune.errors import LayoutError, UsageError
from misotune.layout import ChatTemplate, encode_sample
from misotune.samples import Sample, SampleInput

INSTRUCTION, CONSTRAINTS = "Name a river.", ("Be brief.", "No commas, gréât ones.")
TURN = f"{INSTRUCTION}\n\n- {CONSTRAINTS[0]}\n- {CONSTRAINTS[1]}"
SYSTEM = {"role": "system", "content": "You are wise."}


def make_sample(turn=TURN, constraints=CONSTRAINTS, base=INSTRUCTION, history=(), output="The Rhine."):
    def entry(role, text, constraint=None):
        return SampleInput(role, (*history, {"role": "user", "content": text}), constraint)

    singles = (entry("constraint", f"{base} {x}", x) for x in constraints)
    return Sample("r", "", "", (entry("full", turn), *singles, entry("base", base)), output)


def texts_of(sample, tokenizer):
    """The text of each part's tokens, without the first token."""
    template = ChatTemplate(tokenizer)
    prompt = parse_prompt(sample)
    row = part_row(prompt, encode_sample(prompt.sample, template), sample.output, template)
    ids = np.concatenate([row.encoded.inputs[0], row.encoded.output])
    names = [*PARTS, *(f"constraint {i}" for i in range(len(prompt.constraints)))]
    assert row.num_parts == len(names)
    assert row.parts[0] == 0
    assert (row.parts == 0).sum() == 1
    return {name: tokenizer.decode(ids[row.parts == part]) for part, name in enumerate(names)}


def test_a_parts_tokens_are_its_text(tokenizer):
    found = texts_of(make_sample(history=(SYSTEM,)), tokenizer)
    assert found == {
        "first token": "<|im_start|>",
        "system": SYSTEM["content"],
        "instruction": INSTRUCTION,
        "constraints": "",
        "rest": "system\n<|im_end|>\n<|im_start|>user\n\n\n- \n- <|im_end|>\n<|im_start|>assistant\n",
        "response": "The Rhine.<|im_end|>",
        "constraint 0": CONSTRAINTS[0],
        "constraint 1": CONSTRAINTS[1],
    }


def test_earlier_turns_are_the_rest_of_the_prompt_whatever_they_say(tokenizer):
    history = ({"role": "user", "content": TURN}, {"role": "assistant", "content": "The Rhine."})
    found = texts_of(make_sample(history=history), tokenizer)
    assert found["instruction"] == INSTRUCTION
    assert found["constraint 1"] == CONSTRAINTS[1]
    assert found["response"] == "The Rhine.<|im_end|>"
    assert TURN in found["rest"]
    assert found["system"] == ""


def test_a_turn_that_reads_like_the_templates_marks_is_found_where_it_stands(tokenizer):
    found = texts_of(make_sample(turn="assistant", constraints=(), base="assistant"), tokenizer)
    assert found["instruction"] == "assistant"
    assert found["rest"] == "user\n<|im_end|>\n<|im_start|>assistant\n"


DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}" + CHATML
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
STRIPPING = CHATML.replace("message['content']", "message['content'] | trim")


def test_a_templates_own_system_prompt_is_the_system_prompt():
    found = texts_of(make_sample(), make_tokenizer(DEFAULT))
    assert found["system"] == "Help."
    assert texts_of(make_sample(history=(SYSTEM,)), make_tokenizer(DEFAULT))["system"] == SYSTEM["content"]


def test_a_template_that_takes_no_system_prompt_has_none():
    assert texts_of(make_sample(), make_tokenizer(REFUSING))["system"] == ""


def test_a_template_that_strips_the_turn_moves_no_part():
    found = texts_of(make_sample(turn=f"  \n{TURN}\n "), make_tokenizer(STRIPPING))
    assert [found["instruction"], found["constraint 0"], found["constraint 1"]] == [INSTRUCTION, *CONSTRAINTS]


def test_a_template_that_rewrites_the_turn_is_refused():
    with pytest.raises(LayoutError, match="changes the text of message 1"):
        texts_of(make_sample(), make_tokenizer(CHATML.replace("message['content']", "message['content'] | upper")))


def test_a_tokenizer_that_knows_no_characters_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(UsageError, match=r"give the model's folder a tokenizer\.json"):
        texts_of(make_sample(), tokenizer)
