"""Splits of rendered Crab turns: proven by rendering, measured on rows whose truth is known."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misotune.data.constraint_text import split_sentences
from misotune.data.crab_split import INDENT, MARKERS, WHEN_ANSWERING, WRAPPERS, split_user_text
from misotune.data.records import Template

CONSTRAINTS = [
    "Keep every sentence under twenty words.",
    "Write in a formal tone.",
    "Use the word 'river' once.",
]
CONNECTORS = ("{item}", "{index}. {item}", *(marker + "{item}" for marker in MARKERS))
WRAPPED = {w.name: w.before + "{instruction}" + w.between + "\n{constraints}" + w.after for w in WRAPPERS}

words = st.text(st.sampled_from("abcdefgh ,;'\"()é"), min_size=1, max_size=40).map(lambda text: f"Use {text} here.")
instructions = st.lists(words, min_size=1, max_size=3).map("\n\n".join)


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("name", WRAPPED)
def test_every_worded_template_and_connector_is_split(name, connector):
    template = Template(WRAPPED[name], INDENT + connector)
    split = split_user_text(template.render("Name a river.\n\nWhy that one?", CONSTRAINTS))
    assert split is not None
    assert (split.instruction, list(split.constraints)) == ("Name a river.\n\nWhy that one?", CONSTRAINTS)
    assert split.rule.startswith(name)
    assert split.template == template


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize(
    "text",
    [
        "{instruction}\n\n{constraints}",
        "{instruction}" + WHEN_ANSWERING + "\n{constraints}",
        "{constraints}\n\nQuery:\n{instruction}",
        "{constraints}\n{instruction}",
    ],
    ids=["bare", "when-answering", "query", "leading"],
)
def test_the_short_and_the_long_forms_are_split(text, connector):
    instruction = "This article: the Rhine rises in the Alps.\nWhere does it end?"
    template = Template(text, connector)
    split = split_user_text(template.render(instruction, CONSTRAINTS))
    assert split is not None
    assert (split.instruction, list(split.constraints)) == (instruction, CONSTRAINTS)


@given(instruction=instructions, constraints=st.lists(words, min_size=1, max_size=5), data=st.data())
def test_rendering_then_splitting_gives_back_instruction_and_constraints(instruction, constraints, data):
    text = data.draw(st.sampled_from([*WRAPPED.values(), "{instruction}" + WHEN_ANSWERING + "\n{constraints}"]))
    indent = INDENT if text in WRAPPED.values() else ""
    template = Template(text, indent + data.draw(st.sampled_from(CONNECTORS[1:])))
    split = split_user_text(template.render(instruction, constraints))
    assert split is not None
    assert (split.instruction, list(split.constraints)) == (instruction, constraints)


@given(st.text(max_size=200) | st.lists(st.sampled_from([*CONSTRAINTS, "- a", "1. b", "", "Q: what?"])).map("\n".join))
def test_a_split_of_any_text_loses_no_character(text):
    split = split_user_text(text)
    if split is not None:
        assert split.template.render(split.instruction, split.constraints) == text
        assert all(part.strip() for part in (split.instruction, *split.constraints))


@given(st.text(max_size=300))
def test_sentences_joined_by_spaces_are_the_paragraph(paragraph):
    assert " ".join(split_sentences(paragraph)) == paragraph


def test_braces_in_the_text_are_only_text():
    text = 'Fill {"a": {0}}.\n\n- Return {index}.\n- Use {item} twice.'
    split = split_user_text(text)
    assert split is not None
    assert split.constraints == ("Return {index}.", "Use {item} twice.")


def test_a_constraint_over_several_lines_stays_whole_behind_a_mark():
    split = split_user_text("Plan a day.\n\n* Use this form:\nMorning: ...\nEvening: ...\n* Be brief.")
    assert split is not None
    assert split.constraints == ("Use this form:\nMorning: ...\nEvening: ...", "Be brief.")


def test_constraints_in_one_paragraph_are_cut_by_sentence():
    text = f"Name a river.{WHEN_ANSWERING}Use numbers (1., 2., etc.) for steps. End with 'Done.' Keep it short."
    split = split_user_text(text)
    assert split is not None
    assert split.constraints == (
        "Use numbers (1., 2., etc.) for steps.",
        "End with 'Done.'",
        "Keep it short.",
    )
    assert split.rule == "when-answering/paragraph"


def test_a_text_without_constraints_has_no_certain_split():
    split = split_user_text("What is the capital of France?")
    assert split is None


def _exact_by_connector(folder: Path) -> tuple[Counter[str], Counter[str]]:
    with (
        gzip.open(folder / "rendered.jsonl.gz") as rows,
        gzip.open(folder / "rendered_gold.jsonl.gz") as gold,
    ):
        pairs = [(json.loads(row), json.loads(truth)) for row, truth in zip(rows, gold, strict=True)]
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for row, truth in pairs:
        split = split_user_text(row["messages"][-2]["content"])
        total[truth["connector"]] += 1
        right[truth["connector"]] += split is not None and (split.instruction, list(split.constraints)) == (
            truth["instruction"],
            truth["constraints"],
        )
    return right, total


def test_real_rows_are_split_exactly_right(shared_data):
    right, total = _exact_by_connector(shared_data / "crab")
    on_lines = [connector for connector in total if connector != " "]
    assert sum(right[c] for c in on_lines) >= 0.97 * sum(total[c] for c in on_lines)
    assert all(right[c] >= 0.9 * total[c] for c in on_lines), {c: (right[c], total[c]) for c in on_lines}
