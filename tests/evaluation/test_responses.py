import itertools
import json

import pytest

from misotune.errors import DataError
from misotune.evaluation.constrained import ConstrainedPrompt
from misotune.evaluation.context.model_tokens import ModelTokens
from misotune.evaluation.context.needle import load_needle
from misotune.evaluation.context.reading import load_reading
from misotune.evaluation.flatten import flatten
from misotune.evaluation.responses import read_responses
from misotune.evaluation.task import ResponseFields

PROMPTS = tuple(
    ConstrainedPrompt(key, f"Prompt {key}", ("punctuation:no_comma",), ({},), f"data line {key}") for key in (1, 2, 3)
)


@pytest.fixture
def read(tmp_path):
    def read(rows, prompts=PROMPTS, all_prompts=PROMPTS, published=None):
        path = tmp_path / "r.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_responses(path, prompts, all_prompts, published)

    return read


def by_prompt(*keys):
    return [{"prompt": f"Prompt {key}", "response": f"answer {key}"} for key in keys]


def test_responses_are_matched_by_prompt_in_any_order(read):
    assert read(by_prompt(3, 1, 2)) == (["answer 1", "answer 2", "answer 3"], [])


def test_responses_are_matched_by_key_before_prompt(read):
    rows = [{"key": str(key), "prompt": f"Prompt {key}\n", "response": f"answer {key}"} for key in (2, 1, 3)]
    assert read(rows) == (["answer 1", "answer 2", "answer 3"], [])


def test_keys_whose_prompts_are_others_are_said(read):
    rows = [{"key": key, "prompt": "old", "response": f"answer {key}"} for key in (2, 1, 3)]
    rows[1]["prompt"] = "Prompt 1"
    texts, (note,) = read(rows)
    assert texts == ["answer 1", "answer 2", "answer 3"]
    assert note.startswith("2 of 3 responses have the key but not the wording of their prompt, the first: ")
    assert note.endswith("r.jsonl line 1")
    assert read(rows, PROMPTS[:1]) == (["answer 1"], [])


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
        ([{"key": 1, "answer": "x"}], "line 1: needs 'response', the response; it has 'key', 'answer'$"),
        ([{}], "line 1: needs 'response', the response; it has no field$"),
        (
            [{"key": 1, "response": "x"}, *by_prompt(1)],
            "line 2: answers key 1, as .*line 1 does already",
        ),
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


def twins(*keys_of_text):
    """Prompts 0, 1, ..., one text for each entry, which has as many prompts as it says; texts take turns."""
    left = [[text] * number for text, number in enumerate(keys_of_text)]
    texts = [text for turn in itertools.zip_longest(*left) for text in turn if text is not None]
    return tuple(
        ConstrainedPrompt(key, f"Text {text}", ("punctuation:no_comma",), ({},), f"data line {key}")
        for key, text in enumerate(texts)
    )


def said(prompts):
    return [{"prompt": prompt.prompt, "response": f"answer {prompt.key}"} for prompt in prompts]


def test_prompts_of_one_text_take_its_rows_in_order(read):
    prompts = twins(3, 1, 2)  # texts 0 1 2 0 2 0
    assert read(said(prompts), prompts, prompts) == ([f"answer {n}" for n in range(6)], [])
    # Between texts the order is free.
    by_text = sorted(prompts, key=lambda prompt: prompt.prompt, reverse=True)
    assert read(said(by_text), prompts, prompts) == ([f"answer {n}" for n in range(6)], [])


def test_one_row_answers_all_prompts_of_its_text(read):
    prompts = twins(3, 1, 2)
    texts, notes = read(said(prompts[:3]), prompts, prompts)
    assert texts == ["answer 0", "answer 1", "answer 2", "answer 0", "answer 2", "answer 0"]
    assert notes == []


@pytest.mark.parametrize("number", [2, 4, 5])
def test_rows_that_are_neither_one_nor_all_of_a_text_are_named(read, number):
    prompts = twins(3, 1)
    rows = [*said(prompts[1:2]), *({"prompt": "Text 0", "response": "x"} for _ in range(number))]
    lines = ", ".join(rf"\S*r.jsonl line {line}" for line in range(2, min(number, 3) + 2))
    more = r", \.\.\." if number > 3 else ""
    with pytest.raises(
        DataError,
        match=rf"^{lines}{more}: {number} rows have one prompt, which the task has 3 times \(keys 0, 2, 3\); give one "
        r"row for all of them, 3 in their order, or rows with keys$",
    ):
        read(rows, prompts, prompts)


def test_a_limited_run_takes_the_rows_of_its_own_prompts_or_of_all(read):
    prompts = twins(3, 1)  # texts 0 1 0 0
    limited = prompts[:3]
    expected = (["answer 0", "answer 1", "answer 2"], [])
    assert read(said(limited), limited, prompts) == expected
    assert read(said(prompts), limited, prompts) == expected
    with pytest.raises(DataError, match="2 rows have one prompt, which the task has 3 times"):
        read(said(limited), prompts, prompts)


def test_rows_with_keys_tell_prompts_of_one_text_apart_in_any_order(read):
    prompts = twins(2, 1)
    rows = [{"key": p.key, "prompt": p.prompt, "response": f"answer {p.key}"} for p in reversed(prompts)]
    assert read(rows, prompts, prompts) == (["answer 0", "answer 1", "answer 2"], [])


def test_flattened_prompts_of_one_text_may_have_a_row_each_or_share_one(read, ifeval_prompts):
    prompts = flatten(ifeval_prompts)
    texts = [prompt.prompt.strip() for prompt in prompts]
    twice = [prompt for prompt, text in zip(prompts, texts, strict=True) if texts.count(text) > 1]
    assert [prompt.key for prompt in twice] == ["30-0", "30-2"]
    each = [f"answer {prompt.key}" for prompt in prompts]
    assert read(said(prompts), prompts, prompts) == (each, [])
    shared, notes = read(said([p for p in prompts if p.key != "30-2"]), prompts, prompts)
    assert shared == ["answer 30-0" if text == "answer 30-2" else text for text in each]
    assert notes == []


@pytest.mark.parametrize("file", ["drop_sample.json", "drop_small.jsonl"])
def test_real_questions_that_stand_there_twice_are_answered_in_order(read, shared_data, file):
    prompts = load_reading("drop", data=shared_data / "qa" / file).prompts
    assert (len({prompt.prompt for prompt in prompts}) < len(prompts)) == (file == "drop_sample.json")
    assert read(said(prompts), prompts, prompts) == ([f"answer {prompt.key}" for prompt in prompts], [])


def test_depths_of_a_short_document_that_come_to_one_prompt_are_answered_in_order(read, tmp_path):
    (tmp_path / "essays.txt").write_text("Long sentences of many plain words stand in this text, one after one. " * 50)
    words = ModelTokens(lambda text: len(text.split()), lambda turns: len(turns[0]["content"].split()), 1000)
    prompts = load_needle(words, haystack=tmp_path / "essays.txt", num_lengths=2, num_depths=31).prompts
    assert len({prompt.prompt for prompt in prompts}) < len(prompts)
    assert read(said(prompts), prompts, prompts) == ([f"answer {prompt.key}" for prompt in prompts], [])


PUBLISHED = ResponseFields(key="id", prompt="question", response="output")


def test_published_files_are_read_as_they_are_and_the_plain_form_too(read):
    plain = by_prompt(3)
    published = [{"id": 2, "model": "m", "question": "Prompt 2", "output": "answer 2"}]
    by_text = [{"question": "Prompt 1", "output": "answer 1"}]
    rows = [*plain, *published, *by_text]
    assert read(rows, published=PUBLISHED) == (["answer 1", "answer 2", "answer 3"], [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1, "generated": "x"}, "needs 'response' or 'output', the response; it has 'id', 'generated'$"),
        ({"output": "x"}, r"needs a field 'question' \(text\) or 'id' to say what it answers"),
        ({"id": 1, "output": 3}, "'output' must be a text, got 3"),
        ({"id": 1, "response": "x"}, r"needs a field 'prompt' \(text\) or 'key'"),
    ],
)
def test_a_published_file_that_is_wrong_says_what_was_looked_for(read, row, message):
    with pytest.raises(DataError, match=f"r.jsonl line 1: {message}"):
        read([row], published=PUBLISHED)
