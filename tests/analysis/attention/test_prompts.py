"""Where instruction and constraints stand in a prompt, and what verifies them."""

import json

import pytest

from misotune.analysis.attention.prompts import Constraint, parse_prompt, read_prompts
from misotune.attention.spans import Span
from misotune.data.dataset import DatasetWriter
from misotune.errors import DataError
from misotune.samples import Sample, SampleInput

ACCOUNT = {"read": 2, "kept": 2, "one_input": {}, "dropped": {}}
NO_COMMA = ("punctuation:no_comma", {})


def make_sample(turn, constraints=(), base=None, row_id="r"):
    def entry(role, text, constraint=None):
        return SampleInput(role, ({"role": "user", "content": text},), constraint)

    bases = () if base is None else (entry("base", base),)
    return Sample(
        row_id, "", "", (entry("full", turn), *(entry("constraint", x, x) for x in constraints), *bases), "No."
    )


def parts_of(prompt):
    turn = prompt.messages[-1]["content"]
    return [turn[span.start : span.stop] for span in (prompt.instruction, *(x.span for x in prompt.constraints))]


def test_a_constraint_is_found_behind_the_instruction_and_those_before_it():
    turn = "Be brief. Be brief. Be brief, or do not."
    prompt = parse_prompt(make_sample(turn, ("Be brief", "be  brief"), "Be brief."))
    assert [x.span for x in prompt.constraints] == [Span(10, 18), Span(20, 28)]
    assert prompt.instruction == Span(0, 9)


def test_a_constraint_in_the_middle_of_the_instruction_is_found():
    prompt = parse_prompt(make_sample("Name a river, in one word, and say why.", ("in one\nword",), "Name a river."))
    assert parts_of(prompt) == ["Name a river, in one word, and say why.", "in one word"]


def test_a_row_with_a_constraint_in_other_words_is_not_taken():
    assert parse_prompt(make_sample("Name a river.", ("Be brief.",))) is None
    assert parse_prompt(make_sample("Be brief.", ("Be brief.", "Be brief."))) is None


def test_a_row_without_constraints_is_all_instruction():
    assert parts_of(parse_prompt(make_sample("Name a river."))) == ["Name a river."]


def test_a_row_without_a_full_prompt_is_not_taken():
    sample = Sample("r", "", "", (SampleInput("base", ({"role": "user", "content": "Hi"},)),), "No.")
    assert parse_prompt(sample) is None


def test_checks_must_be_as_many_as_constraints():
    with pytest.raises(DataError, match="row r: 1 checks for 2 constraints; give one for each or none"):
        parse_prompt(make_sample("a b", ("a", "b")), [NO_COMMA])


def test_a_verdict_is_the_verifiers_and_unknown_without_one():
    met = Constraint("No commas.", Span(0, 1), NO_COMMA)
    assert met.is_met("Yes.", "row r") is True
    assert met.is_met("Yes, no.", "row r") is False
    assert Constraint("Be kind.", Span(0, 1)).is_met("Yes.", "row r") is None
    own = Constraint("Two points.", Span(0, 1), ("list:numbered", {"num_items": 2}))
    assert own.is_met("1. Rain\n2. Snow", "row r") is True


def test_wrong_checks_are_named():
    with pytest.raises(DataError, match="row r: unknown constraint type 'punctuation:no_coma'"):
        Constraint("x", Span(0, 1), ("punctuation:no_coma", {})).is_met("Yes.", "row r")
    with pytest.raises(DataError, match=r"row r: punctuation:no_comma cannot be verified with \{'a': 1\}"):
        Constraint("x", Span(0, 1), ("punctuation:no_comma", {"a": 1})).is_met("Yes.", "row r")


def test_what_cannot_be_verified_here_is_not_known(monkeypatch):
    def without_data(*arguments):
        raise LookupError("punkt_tab")  # as NLTK says it

    monkeypatch.setattr("misotune.analysis.attention.prompts.is_met", without_data)
    check = ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"})
    assert Constraint("x", Span(0, 1), check).is_met("One. Two.", "row r") is None


def test_the_starter_set_is_found_whole_and_meets_its_constraints(punkt):
    prompts = list(read_prompts(None))
    assert len(prompts) > 100
    assert None not in prompts
    for prompt in prompts[:40]:
        assert parts_of(prompt)[1:] == [x.text for x in prompt.constraints]
        assert all(x.is_met(prompt.sample.output, prompt.sample.id) for x in prompt.constraints)


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"instruction": "Name a river.", "constraints": ["No commas."], "output": "The Rhine."}
CHECKS = {"instruction_id_list": [NO_COMMA[0]], "kwargs": [{"num_words": None}]}


def test_lines_may_be_rows_of_a_dataset_or_instructions_with_checks_or_without(tmp_path):
    prepared = make_sample("Name a river. No commas.", ("No commas.",)).to_row()
    path = write_lines(tmp_path / "rows.jsonl", ROW, ROW | CHECKS, prepared | CHECKS, prepared)
    prompts = list(read_prompts(path))
    assert [x.constraints[0].check for x in prompts] == [None, NO_COMMA, NO_COMMA, None]
    assert [x.sample.id for x in prompts] == ["rows-1", "rows-2", "r", "r"]


BROKEN = {
    "no-output": ({"instruction": "a"}, "rows.jsonl:1: .*; or prepare the data: misotune prepare"),
    "of-two-lengths": (ROW | CHECKS | {"kwargs": []}, "rows.jsonl:1: .* must be lists of one length"),
    "not-types": (ROW | {"instruction_id_list": [1], "kwargs": [{}]}, "rows.jsonl:1: .* must hold constraint types"),
}


@pytest.mark.parametrize(("row", "message"), BROKEN.values(), ids=BROKEN)
def test_a_wrong_line_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        list(read_prompts(write_lines(tmp_path / "rows.jsonl", row)))


def test_a_dataset_brings_its_checks_by_row(tmp_path):
    with DatasetWriter(tmp_path / "d") as writer:
        for row_id in ("a", "b"):
            writer.add(make_sample("Name a river. No commas.", ("No commas.",), row_id=row_id))
        writer.add_checks("b", [NO_COMMA])
        writer.finish({"source": {"name": "t"}, "mode": "para", "account": ACCOUNT})
    assert [x.constraints[0].check for x in read_prompts(tmp_path / "d")] == [None, NO_COMMA]
    (tmp_path / "d" / "checks.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"checks\.jsonl:1: broken; prepare the dataset again"):
        list(read_prompts(tmp_path / "d"))
