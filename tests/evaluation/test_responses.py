import json

import pytest

from misotune.errors import DataError
from misotune.evaluation.constrained import ConstrainedPrompt
from misotune.evaluation.responses import read_responses

PROMPTS = tuple(
    ConstrainedPrompt(key, f"Prompt {key}", ("punctuation:no_comma",), ({},), f"data line {key}") for key in (1, 2, 3)
)


@pytest.fixture
def read(tmp_path):
    def read(rows, prompts=PROMPTS):
        path = tmp_path / "r.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_responses(path, prompts, PROMPTS)

    return read


def by_prompt(*keys):
    return [{"prompt": f"Prompt {key}", "response": f"answer {key}"} for key in keys]


def test_responses_are_matched_by_prompt_in_any_order(read):
    assert read(by_prompt(3, 1, 2)) == (["answer 1", "answer 2", "answer 3"], [])


def test_responses_are_matched_by_key_before_prompt(read):
    rows = [{"key": str(key), "prompt": "old", "response": f"answer {key}"} for key in (2, 1, 3)]
    assert read(rows) == (["answer 1", "answer 2", "answer 3"], [])


def test_one_reworded_prompt_is_paired_by_its_line_and_said(read):
    rows = by_prompt(1, 2, 3)
    rows[1]["prompt"] = "An older wording"
    texts, notes = read(rows)
    assert texts == ["answer 1", "answer 2", "answer 3"]
    assert len(notes) == 1
    assert notes[0].endswith("r.jsonl line 2: its prompt is not worded as that of key 2; paired by line order")


@pytest.mark.parametrize("order", [(2, 1, 99), (1, 98, 99)], ids=["out-of-order", "two-left"])
def test_what_line_order_does_not_prove_is_refused(read, order):
    with pytest.raises(DataError, match=r"r\.jsonl: no response to \d of 3 prompts, the first: key \d \(data line"):
        read(by_prompt(*order))


def test_a_prompt_without_response_is_named(read):
    with pytest.raises(DataError, match=r"no response to 2 of 3 prompts, the first: key 1 \(data line 1\), key 3"):
        read(by_prompt(2))


def test_responses_to_the_first_prompts_do_for_a_limited_run(read):
    assert read(by_prompt(1, 2), PROMPTS[:2]) == (["answer 1", "answer 2"], [])
    assert read(by_prompt(1, 2, 3), PROMPTS[:2]) == (["answer 1", "answer 2"], [])


def test_rows_that_answer_nothing_are_counted(read):
    texts, notes = read(by_prompt(1, 2, 3, 99))
    assert len(texts) == 3
    assert notes[0].endswith("1 rows answer no prompt of this task and were left out")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"response": "x"}], "line 1: needs a field 'prompt'"),
        ([{"key": 1, "response": None}], "line 1: 'response' must be a text, got None"),
        (by_prompt(1, 1), "line 2: answers key 1, as .*line 1 does already"),
        (
            by_prompt(98, 99),
            "none of its 2 rows answers a prompt of this task; the first has prompt 'Prompt 98'",
        ),
        ([{"key": "z", "response": "x"}], "the first has key 'z'"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(read, rows, message):
    with pytest.raises(DataError, match=message):
        read(rows)
