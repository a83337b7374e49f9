import pytest

from misotune.errors import DataError
from misotune.samples import Sample, SampleInput, select_inputs

USER = {"role": "user", "content": "Hi"}
ROW = {"id": "a", "inputs": [{"role": "full", "messages": [USER]}], "output": "Hello"}


def test_row_round_trips():
    sample = Sample.from_row(ROW, "rows.jsonl:1")
    assert Sample.from_row(sample.to_row(), "again") == sample


BROKEN = {
    "no-output": ({"inputs": ROW["inputs"]}, "rows.jsonl:3: no field 'output'"),
    "empty-output": (ROW | {"output": " "}, "rows.jsonl:3: 'output' must be a text that is not empty"),
    "no-inputs": (ROW | {"inputs": []}, "'inputs' must be a list with at least one input"),
    "role": (ROW | {"inputs": [{"role": "fill", "messages": [USER]}]}, r"inputs\[0\]: role 'fill' is not one of full"),
    "no-messages": (ROW | {"inputs": [{"role": "full", "messages": []}]}, "'messages' must be a list"),
    "message": (ROW | {"inputs": [{"role": "full", "messages": ["Hi"]}]}, "a message needs 'role' and 'content'"),
    "content": (
        ROW | {"inputs": [{"role": "full", "messages": [{"role": "user", "content": 3}]}]},
        "a message's content must be text, got 3",
    ),
    "last-turn": (
        ROW | {"inputs": [{"role": "full", "messages": [USER, {"role": "assistant", "content": "x"}]}]},
        "the last message must be the user's, got 'assistant'",
    ),
}


@pytest.mark.parametrize(("row", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_row_is_named(row, message):
    with pytest.raises(DataError, match=message):
        Sample.from_row(row, "rows.jsonl:3")


def sample_with(*roles):
    return Sample("a", "", "", tuple(SampleInput(role, (USER,), None) for role in roles), "Hello")


def test_modes_choose_their_inputs():
    sample = sample_with("full", "constraint", "constraint", "base")
    roles = {"full", "constraint", "base"}
    assert [len(s.inputs) for s in select_inputs(sample, "para", roles)] == [4]
    assert [s.inputs[0].role for s in select_inputs(sample, "sft", roles)] == ["full"]
    assert [s.inputs[0].role for s in select_inputs(sample, "succ", roles)] == ["full"]
    assert [s.id for s in select_inputs(sample, "flat", roles)] == ["a#0", "a#1", "a#2", "a#3"]
    (without_full,) = select_inputs(sample, "para", {"constraint", "base"})
    assert [entry.role for entry in without_full.inputs] == ["constraint", "constraint", "base"]


def test_one_input_row_keeps_its_full_instruction_when_full_is_left_out():
    (kept,) = select_inputs(sample_with("full"), "para", {"constraint"})
    assert [entry.role for entry in kept.inputs] == ["full"]


def test_sft_of_a_row_without_full_instruction_is_refused():
    with pytest.raises(DataError, match=r"row a: miso.mode=sft needs an input of role 'full'"):
        select_inputs(sample_with("constraint"), "sft", set())
