"""Rules on instructions whose constraints are known, on texts that must stay whole, and on real rows."""

import gzip
import json
import pickle
import re
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misotune.data.decompose.rules import (
    NO_TASK,
    NOT_ENGLISH,
    NOT_FOUND,
    TOO_LONG,
    UNSURE,
    decompose_by_rules,
    decompose_text,
)
from misotune.data.decompose.segments import masked, segments_of
from misotune.data.records import Record, to_samples


def record(text: str, **fields) -> Record:
    values = {"id": "r", "source": "s", "domain": "d", "history": (), "constraints": (), "output": "An answer."}
    return Record(instruction=text, **{**values, **fields})


def parts(text: str) -> tuple[str, list[str]]:
    found = decompose_text(text)
    assert found.why_not is None, found
    return found.instruction, [one.text for one in found.found]


TASK = "Write a short story about a lighthouse."
CONSTRAINTS = {
    "answer-must": "Your answer must contain exactly three paragraphs.",
    "in-your-answer": "In your response, avoid the letter z.",
    "order-on-answer": "Wrap your entire response in double quotation marks.",
    "make-sure": "Make sure that the keeper is never named.",
    "prohibition": "Do not use any commas.",
    "no-form": "No explanations.",
    "i-do-not-want": "I don't want any dialogue.",
    "only": "Only output the story.",
    "there-should": "There should be 2 sections.",
    "reply-form": "Answer in French.",
    "count-order": "Use at least 300 words.",
    "form-order": "Highlight the names in bold.",
    "keep-it": "Keep it light.",
    "written-in": "Write in the first person.",
    "include": "Include a storm.",
    "add-form": "Add a title.",
    "be-so": "Be concise.",
    "you-must": "You must not mention the sea.",
    "i-want-it": "I want the story to end well.",
    "word-frequency": "The word 'lamp' should appear twice.",
    "its-part-must": "The story should be sad.",
    "label": "Tone: melancholic.",
    "bare-count": "At most 200 words.",
    "first-repeat": "First repeat the request word for word.",
}


@pytest.mark.parametrize("rule", CONSTRAINTS)
def test_each_wording_is_found_behind_a_task_and_named(rule):
    found = decompose_text(f"{TASK} {CONSTRAINTS[rule]}")
    assert found.why_not is None
    assert [(one.text, one.rule) for one in found.found] == [(CONSTRAINTS[rule], rule)]
    assert found.instruction == TASK


@given(
    st.permutations(list(CONSTRAINTS.values())).map(lambda all_of_them: all_of_them[:4]),
    st.sampled_from([" ", "\n", "\n\n"]),
)
def test_constraints_are_found_in_any_order_and_on_lines_or_in_a_paragraph(some, gap):
    assert parts(gap.join([TASK, *some])) == (TASK, some)


@pytest.mark.parametrize(
    ("text", "instruction", "constraint"),
    [
        ("Describe the color yellow in 3 words.", "Describe the color yellow.", "In 3 words"),
        ("Explain rain in at most two sentences!", "Explain rain!", "In at most two sentences"),
        ("Write a poem about rain, but do not use rhymes.", "Write a poem about rain.", "Do not use rhymes"),
        ("Summarize the plot without mentioning the hero.", "Summarize the plot.", "Without mentioning the hero"),
        (
            "List five rivers, making sure that all are in Asia.",
            "List five rivers.",
            "Making sure that all are in Asia",
        ),
        ("Explain gravity in a friendly tone.", "Explain gravity.", "In a friendly tone"),
    ],
)
def test_a_constraint_at_the_end_of_the_task_sentence_is_cut_off(text, instruction, constraint):
    assert parts(text) == (instruction, [constraint])


def test_a_list_under_a_head_gives_its_items_and_leaves_no_head():
    text = "Plan a trip to Rome.\n\nRequirements:\n- Use a table.\n- Do not exceed 5 days.\n* Include a museum."
    assert parts(text) == ("Plan a trip to Rome.", ["Use a table.", "Do not exceed 5 days.", "Include a museum."])


def test_a_head_that_holds_the_task_keeps_the_task():
    text = "Write an article about rice that meets the following requirements:\n1. Use 3 headings.\n2. Avoid jargon."
    assert parts(text) == ("Write an article about rice", ["Use 3 headings.", "Avoid jargon."])


def test_a_list_without_a_head_counts_when_all_items_are_orders():
    assert parts("Name a river.\n* Be brief.\n* Avoid commas.") == ("Name a river.", ["Be brief.", "Avoid commas."])


@pytest.mark.parametrize("mark", ["* ", "- ", "1) ", ""], ids=["star", "dash", "number", "bare"])
def test_a_list_of_options_belongs_to_its_constraint(mark):
    options = f"Your answer must contain exactly one of the following phrases:\n{mark}Yes, sir.\n{mark}No, madam."
    assert parts(f"Is tea healthy?\n\n{options}") == ("Is tea healthy?", [options])


def test_orders_behind_the_last_item_of_a_list_stand_apart():
    text = (
        "Tell me a tale. Your answer must have 2 bullet points such as:\n* This is one.\n* This is two. Make sure your "
        "response is in lower case."
    )
    instruction, constraints = parts(text)
    assert instruction == "Tell me a tale."
    assert constraints[1:] == ["Make sure your response is in lower case."]


def test_an_example_stays_with_its_constraint():
    text = "Name a river. Highlight the name in bold. For example: **Rhine**. Do not use commas."
    assert parts(text)[1] == ["Highlight the name in bold. For example: **Rhine**.", "Do not use commas."]


def test_constraints_behind_a_passage_are_found_and_the_passage_is_not_touched():
    passage = "Make sure to wash your hands. Do not touch the stove. The children should never be alone."
    text = f"Summarize this text:\n{passage} Your answer must be in lower case. Use at least 4 sentences in your reply."
    instruction, constraints = parts(text)
    assert instruction == f"Summarize this text:\n{passage}"
    assert constraints == ["Your answer must be in lower case.", "Use at least 4 sentences in your reply."]


@pytest.mark.parametrize(
    "text",
    [
        "What is the capital of France?",
        "Can you please answer in two paragraphs?",
        "Translate to German: Do not open the door. Make sure to lock it.",
        'Translate this: "Do not open the door. Make sure to lock it."',
        "Fix this code:\n```python\n# Do not use commas. Make sure it runs.\nprint(1)\n```",
        'Explain the sign """Avoid the lake. Do not swim.""" to me.',
        "Which is right?\na) You must stop.\nb) You should go.\nc) Do not turn.",
        "Make a soup with these ingredients:\n- 2 onions\n- 1 carrot\n- salt",
        "Rewrite this in a formal tone.\nHey, don't be late. You should come early.",
        "Put the steps in order:\n1. Add the flour.\n2. Do not stir.\n3. Use a spoon.",
        "Categorize the following: use a hammer, avoid nails, keep the wood dry.",
        "Who is the CEO of Google?\nNo input",
        "The farmer has a boat. The boat can only hold one item. How does he cross?",
        "You need to write a function that adds two numbers.",
        "Don't worry about me. Tell me a joke about cats",
        "Q: Why must plants have light?\nA: They need it to grow.\nQ: Should they be watered?\nA:",
    ],
)
def test_content_and_questions_stay_whole(text):
    result = decompose_by_rules(record(text))
    assert (result.instruction, result.constraints, result.full_text) == (text, (), None)
    assert result.one_input in (NOT_FOUND, NO_TASK, UNSURE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Your answer must be short. Do not use commas.", NO_TASK),
        ("Schreibe ein Gedicht. Antworte auf Deutsch und verwende keine Kommas im Text.", NOT_ENGLISH),
        ("写一首关于雨的诗。不要使用逗号。", NOT_ENGLISH),
        ("Name a river. Do not use commas. " + "x" * 20_000, TOO_LONG),
    ],
    ids=["no-task", "german", "chinese", "long"],
)
def test_what_cannot_be_taken_apart_keeps_one_input_with_the_reason(text, reason):
    result = decompose_by_rules(record(text))
    assert result.one_input == reason
    assert result.constraints == ()


def test_a_split_below_the_confidence_asked_for_keeps_one_input():
    text = f"{TASK} Include a storm."
    assert decompose_by_rules(record(text)).constraints == ("Include a storm.",)
    result = decompose_by_rules(record(text), min_confidence=0.8)
    assert (result.constraints, result.one_input) == ((), UNSURE)


def test_a_sentence_that_points_back_lowers_the_confidence():
    plain = decompose_text(f"{TASK} Include a storm. Show the keeper at dawn.")
    pointing = decompose_text(f"{TASK} Include a storm. It destroys the lamp at dawn.")
    assert pointing.confidence < plain.confidence


@pytest.mark.parametrize("fields", [{"constraints": ("Be brief.",)}, {"history_loss": True}], ids=["split", "chat"])
def test_records_with_constraints_and_chats_are_left_as_they_are(fields):
    before = record(f"{TASK} Do not use commas.", one_input="chat", **fields)
    assert decompose_by_rules(before) is before


def test_the_samples_hold_the_text_each_constraint_and_the_bare_instruction():
    text = f"{TASK} Also, do not use commas. At most 200 words."
    result = decompose_by_rules(record(text, one_input="no constraints"))
    [sample] = to_samples(result, "para")
    assert [(entry.role, entry.messages[-1]["content"]) for entry in sample.inputs] == [
        ("full", text),
        ("constraint", f"{TASK} Do not use commas."),
        ("constraint", f"{TASK} At most 200 words."),
        ("base", TASK),
    ]
    assert sample.rule == "rules/prohibition"
    assert result.one_input is None


def test_lines_are_joined_as_lines():
    result = decompose_by_rules(record(f"{TASK}\n\nDo not use commas."))
    assert result.template.render(result.instruction, result.constraints) == f"{TASK}\n\nDo not use commas."


def test_the_step_crosses_a_process_border():
    assert pickle.loads(pickle.dumps(decompose_by_rules)) is decompose_by_rules
    result = decompose_by_rules(record(f"{TASK} Do not use commas."))
    assert pickle.loads(pickle.dumps(result)) == result


odd_text = st.text(max_size=300) | st.lists(
    st.sampled_from([TASK, *CONSTRAINTS.values(), "- ", "1. a", "\n", "\n\n", '"', "```", "'", "Rules:", " ", "it.Use"])
).map(" ".join)


@given(odd_text)
def test_no_text_breaks_the_rules_and_no_word_is_lost_or_made_up(text):
    found = decompose_text(text)
    if found.why_not is None and found.found:
        assert found.instruction.strip()
        spans = [(one.start, one.end) for one in found.found]
        assert all(a < b <= c for (a, b), (c, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=True))
        kept, end = "", 0
        for start, stop in spans:
            kept, end = kept + text[end:start], stop
        kept += text[end:]
        assert found.instruction.split() == kept.split() or "".join(found.instruction.split()) == "".join(kept.split())
        for one in found.found:
            assert one.text[1:] in text
            assert text[one.body : one.end].strip().endswith(one.text[1:])


@given(odd_text)
def test_segments_cover_all_but_white_space(text):
    assert len(masked(text)) == len(text)
    end = 0
    for segment in segments_of(text):
        assert text[end : segment.start].strip() == ""
        assert segment.start <= segment.body < segment.end
        end = segment.end
    assert text[end:].strip() == ""


def words_of(*texts: str) -> Counter[str]:
    return Counter(word for text in texts for word in re.sub(r"\W+", " ", text).lower().split())


def measure(rows) -> tuple[float, float]:
    """Precision and recall over the words of constraints."""
    right = found = true = 0
    for row in rows:
        result = decompose_by_rules(record(row["prompt"]))
        got, truth = words_of(*result.constraints), words_of(*row["constraints"])
        right += (got & truth).total()
        found += got.total()
        true += truth.total()
    return right / found, right / true


@pytest.mark.parametrize(
    ("name", "precision", "recall"),
    [("ifeval_extended", 0.94, 0.95), ("follow_complex_instruction", 0.91, 0.75)],
)
def test_real_instructions_are_split_as_their_makers_made_them(shared_data, name, precision, recall):
    with gzip.open(shared_data / name / "joined_train.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines][::3]
    measured = measure(rows)
    assert measured[0] >= precision
    assert measured[1] >= recall
    run_together = [row | {"prompt": " ".join([row["instruction"], *row["constraints"]])} for row in rows]
    assert measure(run_together)[0] >= precision - 0.02


def test_few_plain_questions_are_split(shared_data):
    """Alpaca's instructions are short tasks: nearly all of them have one input."""
    with gzip.open(shared_data / "chat" / "alpaca_en_demo.json.gz") as file:
        rows = json.load(file)
    results = [decompose_by_rules(record(row["instruction"] + "\n" + row["input"])) for row in rows]
    num_split = sum(bool(result.constraints) for result in results)
    assert num_split <= 0.04 * len(rows)
    assert all(result.constraints or result.one_input for result in results)


def test_the_order_of_the_rules_does_not_decide_between_two_sentences():
    first, second, third = (CONSTRAINTS[name] for name in ("prohibition", "bare-count", "label"))
    for some in permutations((first, second, third)):
        assert set(parts(" ".join([TASK, *some]))[1]) == {first, second, third}


@pytest.mark.parametrize(
    "text",
    [
        "given a b c " * 1600,
        "please " * 2800,
        '"' * 20_000,
        "- a\n" * 5000,
        "Write. The " + "very " * 3900,
        "*" * 20_000,
    ],
    ids=["given", "please", "quotes", "items", "very", "stars"],
)
@pytest.mark.timeout(10)
def test_no_text_takes_long(text):
    assert decompose_text(text[:20_000]).why_not is not None
