"""Splits of rendered Crab turns: proven by rendering, measured on rows whose truth is known."""

import gzip
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misotune.data.constraint_text import is_constraint_like, split_sentences
from misotune.data.crab_split import split_user_text
from misotune.data.crab_templates import INDENT, MARKERS, WHEN_ANSWERING, WRAPPERS
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


def test_a_paragraph_of_its_own_line_is_told_from_constraints_on_lines():
    text = f"Name a river.{WHEN_ANSWERING}\nKeep it short. Use no commas. Write in a formal tone."
    split = split_user_text(text)
    assert split is not None
    assert (split.rule, len(split.constraints)) == ("when-answering/paragraph", 3)
    inside = "To generate your response, please adhere to the following:\n1. **Instructions**: Name a river.\n"
    inside += "2. **Additional Constraints**: \n    Keep it short. Use no commas. Stay formal.\n\nIt's important to "
    inside += "follow these guidelines closely to ensure your response is appropriate."
    split = split_user_text(inside)
    assert split is not None  # these words leave no room for another form: a line is a constraint
    assert split.constraints == ("Keep it short. Use no commas. Stay formal.",)


def test_marked_constraints_may_hold_blank_lines():
    split = split_user_text("Plan a day.\n\n- Use this form:\n\nMorning\n\nEvening\n- Be brief.")
    assert split is not None
    assert split.constraints == ("Use this form:\n\nMorning\n\nEvening", "Be brief.")


def test_an_instruction_below_its_constraints_begins_where_they_end():
    constraints = "Keep it short.\nThe response should be formal.\nUse no commas."
    for instruction in (
        "Write a story about an owl.\nIt lives in a wood.",
        "Pick the main idea from the paragraph.\n\nThe Rhine rises in the Alps.",
        "\n\nThis article: The Rhine. What is it?\nAnswer:",
        "请写一篇短文。\n语言要简洁。",
    ):
        split = split_user_text(f"{constraints}\n{instruction}")
        assert split is not None
        assert (split.instruction, len(split.constraints)) == (instruction, 3)


@pytest.mark.parametrize("text", ["Write a story about an owl.", "You are given a sentence.", "Why?", "def f(x):"])
def test_what_opens_a_task_is_no_constraint(text):
    assert not is_constraint_like(text)


def exact_shares(verdicts):
    """Exact rows as a share, for each cell of template and connector."""
    return {cell: counts["right"] / counts.total() for cell, counts in verdicts.items()}


def test_texts_the_rules_never_saw_are_split_exactly_right(shared_data):
    held_out = pytest.importorskip("benchmarks.crab_split", reason="run from the repository")
    on_lines: dict[str, Counter[str]] = {}
    paragraphs: Counter[str] = Counter()
    for template, connector, source, instruction, constraints in held_out.cases("test", 8, seed=1):
        if source not in ("crab", "ifeval", "fragments"):
            continue  # one constraint, and constraints of several lines, are reported by the benchmark
        text = held_out.render(template, connector, instruction, constraints)
        result, _ = held_out.verdict(text, instruction, constraints)
        if connector != "paragraph":
            on_lines.setdefault(template, Counter())[result] += 1
        elif source == "crab":
            paragraphs[result] += 1
    shares = exact_shares(on_lines)
    assert len(shares) == 11
    assert min(shares.values()) >= 0.97, shares
    assert exact_shares({"paragraph": paragraphs})["paragraph"] >= 0.9


def test_rows_whose_truth_is_known_are_split_exactly_right(shared_data):
    with (
        gzip.open(shared_data / "crab" / "rendered.jsonl.gz") as rows,
        gzip.open(shared_data / "crab" / "rendered_gold.jsonl.gz") as gold,
    ):
        pairs = [(json.loads(row), json.loads(truth)) for row, truth in zip(rows, gold, strict=True)]
    verdicts: dict[str, Counter[str]] = {}
    for row, truth in pairs:
        split = split_user_text(row["messages"][-2]["content"])
        is_right = split is not None and (split.instruction, list(split.constraints)) == (
            truth["instruction"],
            truth["constraints"],
        )
        verdicts.setdefault(truth["connector"], Counter())["right" if is_right else "wrong"] += 1
    shares = exact_shares(verdicts)
    paragraph = shares.pop(" ")
    assert min(shares.values()) >= 0.97, shares
    assert paragraph >= 0.6  # three rows
