"""A model's split is believed only as far as the text bears it out."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misotune.data.decompose.grounding import (
    LOST,
    NEGATION,
    NO_TASK,
    NOT_IN_TEXT,
    QUOTED,
    TASK_NOT_IN_TEXT,
    TWICE,
    Grounding,
    ground,
)
from misotune.data.decompose.prompt import EXAMPLES
from misotune.data.decompose.rules import decompose_text

TEXT = (
    "Write a story about a lighthouse keeper and his dog. Keep it under 200 words and do not use any commas. "
    'End with the sentence "The light went out." Your answer must be in lower case.'
)
TASK = "Write a story about a lighthouse keeper and his dog."
PARTS = [
    "Keep it under 200 words",
    "do not use any commas",
    'End with the sentence "The light went out."',
    "Your answer must be in lower case.",
]


def test_a_faithful_split_is_grounded_and_put_in_the_order_of_the_text():
    assert ground(TEXT, TASK, PARTS) == Grounding(tuple(PARTS), 1.0)
    assert ground(TEXT, TASK, PARTS[::-1]) == Grounding(tuple(PARTS), 1.0)


@pytest.mark.parametrize(
    "near",
    [
        "The answer must be in lower case.",
        "answer in lower case",
        "Your answer must be in lower-case.",
        "be in lower case",
    ],
)
def test_small_words_may_differ(near):
    found = ground(TEXT, TASK, [*PARTS[:3], near])
    assert isinstance(found, Grounding) or near == "Your answer must be in lower-case."
    if isinstance(found, Grounding):
        assert found.constraints[3] == near


@pytest.mark.parametrize(
    ("task", "parts", "reason"),
    [
        (TASK, [*PARTS, "Use simple vocabulary."], NOT_IN_TEXT),
        (TASK, [*PARTS[:3], "Your answer must be in upper case."], NOT_IN_TEXT),
        (TASK, ["Keep it under 300 words", *PARTS[1:]], NOT_IN_TEXT),
        (TASK, [PARTS[0], "use any commas", *PARTS[2:]], NEGATION),
        (TASK, ["Do not keep it under 200 words", *PARTS[1:]], NEGATION),
        (TASK, PARTS[1:], LOST),
        (TASK, [PARTS[0], *PARTS[2:]], LOST),
        ("Write a story.", PARTS, LOST),
        (TEXT, PARTS, TWICE),
        (TASK + " Keep it under 200 words.", PARTS, TWICE),
        (TASK, [*PARTS, PARTS[0]], TWICE),
        ("", PARTS, NO_TASK),
        ("...", PARTS, NO_TASK),
        ("Tell a tale of the sea.", PARTS, TASK_NOT_IN_TEXT),
        ("Dog his and keeper lighthouse a about story a write.", PARTS, TASK_NOT_IN_TEXT),
        (TASK, [*PARTS, "   "], NOT_IN_TEXT),
    ],
    ids=[
        "invented",
        "changed-word",
        "changed-number",
        "negation-lost",
        "negation-added",
        "number-lost",
        "negation-part-lost",
        "task-cut-short",
        "nothing-removed",
        "left-in-the-task",
        "twice",
        "empty-task",
        "no-words",
        "another-task",
        "word-salad",
        "blank",
    ],
)
def test_what_the_text_does_not_bear_out_is_refused_with_the_reason(task, parts, reason):
    assert ground(TEXT, task, parts) == reason


def test_a_constraint_out_of_quoted_text_is_refused():
    text = 'Translate "Close the door. Do not use the stairs." into French. Be brief.'
    found = ground(text, 'Translate "Close the door." into French.', ["Do not use the stairs", "Be brief."])
    assert found == QUOTED


def test_languages_without_spaces_are_grounded_by_character():
    text = "写一首关于雨的诗。不要使用逗号。请用三行。"
    assert ground(text, "写一首关于雨的诗。", ["不要使用逗号。", "请用三行。"]) == Grounding(
        ("不要使用逗号。", "请用三行。"), 1.0
    )
    assert ground(text, "写一首关于雪的诗。", ["不要使用逗号。", "请用三行。"]) == TASK_NOT_IN_TEXT


def test_the_examples_of_the_prompt_are_grounded_themselves():
    for text, instruction, constraints in EXAMPLES:
        if constraints:
            found = ground(text, instruction, constraints)
            assert isinstance(found, Grounding), (text, found)
            assert found.constraints == constraints


def test_the_splits_of_real_instructions_are_grounded_and_wrong_ones_are_not(shared_data):
    with gzip.open(shared_data / "ifeval_extended" / "joined_train.jsonl.gz") as lines:
        rows = [row for row in map(json.loads, lines) if row["constraints"]][::15]
    right = [ground(row["prompt"], row["instruction"], row["constraints"]) for row in rows]
    assert sum(isinstance(found, Grounding) for found in right) >= 0.95 * len(rows)
    others = rows[1:] + rows[:1]
    swapped = [
        ground(row["prompt"], row["instruction"], other["constraints"])
        for row, other in zip(rows, others, strict=True)
        if not set(row["constraints"]) & set(other["constraints"])
    ]
    assert sum(isinstance(found, Grounding) for found in swapped) <= 0.05 * len(swapped)


@given(
    st.lists(
        st.sampled_from(["Do not use commas.", "At most 200 words.", "Include a storm.", "Be concise."]),
        unique=True,
        min_size=1,
    )
)
def test_what_the_rules_cut_is_grounded(constraints):
    text = " ".join([TASK, *constraints])
    parts = decompose_text(text)
    found = ground(text, parts.instruction, [one.text for one in parts.found])
    assert isinstance(found, Grounding)


@given(st.text(max_size=200), st.text(max_size=100), st.lists(st.text(max_size=50), max_size=4))
def test_no_answer_of_a_model_breaks_the_check(text, instruction, constraints):
    assert isinstance(ground(text, instruction, constraints), str | Grounding)
