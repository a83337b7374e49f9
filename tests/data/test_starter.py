"""The embedded starter set: every constraint is verified on its response, and the two splits are apart."""

import json
from collections import Counter
from importlib.resources import files

import pytest

from misotune.evaluation.constrained import prompts_from_rows
from misotune.verifiers import ensure_verifiers, verify

FOLDER = files("misotune.data.starter")
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven"),
    *("eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen"),
)
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
# What these check is said by their sentence in other words than the value: a language's name, an order, at least one.
NOT_LITERAL = {"relation", "let_relation", "language"}


def read(name):
    return [json.loads(line) for line in FOLDER.joinpath(name).read_text(encoding="utf-8").splitlines()]


TRAIN, EVAL = read("train.jsonl"), read("eval.jsonl")


def as_prompts(rows, text_field):
    return prompts_from_rows(
        (
            f"row {number}",
            {
                "key": number,
                "prompt": row[text_field],
                "instruction_id_list": row["instruction_id_list"],
                "kwargs": row["kwargs"],
            },
        )
        for number, row in enumerate(rows)
    )


def test_there_are_enough_rows_with_two_to_five_constraints():
    assert len(TRAIN) >= 200
    assert len(EVAL) >= 60
    for row in TRAIN:
        assert 2 <= len(row["constraints"]) <= 5, row["id"]
        assert len(row["constraints"]) == len(row["instruction_id_list"]) == len(row["kwargs"])
    assert len({row["id"] for row in TRAIN}) == len(TRAIN)
    assert len({row["key"] for row in EVAL}) == len(EVAL)


@pytest.fixture(scope="module")
def train_prompts():
    prompts = as_prompts(TRAIN, "instruction")
    ensure_verifiers([*prompts, *as_prompts(EVAL, "prompt")], offline=True)  # none needs data that must be fetched
    return prompts


@pytest.mark.parametrize("number", range(len(TRAIN)), ids=[row["id"] for row in TRAIN])
def test_response_meets_every_constraint(train_prompts, number):
    row = TRAIN[number]
    verdicts = verify(train_prompts[number], row["output"])
    assert all(verdicts.strict), list(zip(row["constraints"], verdicts.strict, strict=True))


def test_an_answer_that_ignores_the_constraints_is_not_let_through(train_prompts):
    share = [
        met for prompt in train_prompts for met in verify(prompt, "I would rather talk about the weather, today").strict
    ]
    assert sum(share) / len(share) < 0.5


def test_every_constraint_states_the_words_and_numbers_that_are_checked():
    for row in TRAIN:
        for text, kwargs in zip(row["constraints"], row["kwargs"], strict=True):
            for name, value in kwargs.items():
                if name not in NOT_LITERAL:
                    stated = any(all(is_stated(part, text) for part in way) for way in ways_to_say(value))
                    assert stated, (row["id"], name, value, text)


def ways_to_say(value):
    if isinstance(value, int):
        return [[value], [value - 1]]  # "less than 61" is "at most 60", "at least 61" is "more than 60"
    return [value if isinstance(value, list) else [value]]


def is_stated(value, text):
    words = text.lower()
    if isinstance(value, str):
        return value.lower() in words
    spoken = [NUMBER_WORDS[value]] if value < len(NUMBER_WORDS) else [w for w, n in TENS.items() if n == value]
    ordinal = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth"}.get(value)
    also = {1: ["a ", "once", "single"], 2: ["twice", "both", "pair"], 3: ["three times"], 12: ["a dozen"]}
    return any(word in words for word in [str(value), *spoken, *([ordinal] if ordinal else []), *also.get(value, [])])


def test_types_are_varied_and_none_dominates():
    counts = Counter(name for row in TRAIN for name in row["instruction_id_list"])
    assert len(counts) >= 20
    assert max(counts.values()) / counts.total() < 0.15


def test_the_splits_share_no_task():
    def runs_of_words(text, length=8):
        words = text.lower().split()
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    train = set().union(*(runs_of_words(row["instruction"]) for row in TRAIN))
    shared = [(row["key"], run) for row in EVAL for run in runs_of_words(row["prompt"]) & train]
    assert not shared
