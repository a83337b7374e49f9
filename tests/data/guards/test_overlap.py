import gzip
import json
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from misotune.data.guards.overlap import Decontamination, PromptIndex
from misotune.data.guards.prompts import EvaluationPrompt, EvaluationSet, hash_prompt
from misotune.data.guards.text import fold, ngram_hashes, words_of
from misotune.data.records import Record
from misotune.data.starter import EVAL_FILE, TRAIN_FILE

PROMPTS = (
    "Explain to my grandmother how a heat pump warms a house in winter when the air outside is cold. "
    "Your answer must contain the word fridge.",
    "Plan a walk through the old town of Lisbon that avoids the steep hills and ends near the river. "
    "Your answer must contain the word fridge.",
    "Name a tree.",
)


def record(text, *constraints, output="An answer.", history=()):
    return Record("1", "s", "d", tuple(history), text, constraints, output)


def reasons(guard, records):
    return [guard.accept(each, guard.fingerprint(each)) for each in records]


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    file = tmp_path_factory.mktemp("sets") / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return Decontamination([file])


def rows_of(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file.read().split("\n") if line]


@pytest.mark.parametrize(
    "row",
    [
        record(PROMPTS[0]),
        record(PROMPTS[0].upper().replace(".", " !")),
        record("Hello! " + PROMPTS[1] + " Thank you very much in advance, and have a nice day."),
        record(PROMPTS[0].split(" Your ")[0]),
        record(PROMPTS[0].split(" Your ")[0], "Use three bullet points.", "Write in German."),
        record("Thanks.", history=[{"role": "user", "content": PROMPTS[1]}, {"role": "assistant", "content": "Ok"}]),
        record("name a  TREE"),
        replace(record("x"), full_text=PROMPTS[1]),
    ],
    ids=[
        "verbatim",
        "case-and-punctuation",
        "inside-a-longer-turn",
        "its-task",
        "its-task-with-other-constraints",
        "an-earlier-user-turn",
        "a-short-prompt-as-a-whole-turn",
        "the-turn-as-it-was",
    ],
)
def test_a_prompt_of_the_set_is_found(guard, row):
    assert reasons(guard, [row]) == ["overlaps an evaluation prompt (mine.jsonl)"]


@pytest.mark.parametrize(
    "row",
    [
        record("What is a heat pump? Your answer must contain the word fridge."),
        record("Sing a song. Your answer must contain the word fridge.", "Your answer must contain the word fridge."),
        record("Name a tree. Then name a river."),
        record("How are you?", output=PROMPTS[0]),
        record("How are you?", history=[{"role": "system", "content": PROMPTS[0]}]),
        record("Explain to my grandmother how a heat pump differs from a fridge."),
    ],
    ids=["a-shared-constraint", "only-constraints", "short-prompt-inside", "the-response", "system", "less-than-half"],
)
def test_other_rows_are_kept(guard, row):
    assert reasons(guard, [row]) == [None]


def test_the_reason_names_the_set(guard):
    rows = [record(PROMPTS[0]), record("How are you?"), record(PROMPTS[1])]
    reason = "overlaps an evaluation prompt (mine.jsonl)"
    assert [guard.accept(row, guard.fingerprint(row)) for row in rows] == [reason, None, reason]


def test_a_copy_in_a_worker_decides_the_same(guard):
    copy = pickle.loads(pickle.dumps(guard))
    for row in (record(PROMPTS[0]), record("How are you?")):
        assert copy.fingerprint(row) == guard.fingerprint(row)


def test_a_prompt_that_stands_twice_in_its_set_is_found_all_the_same():
    index = PromptIndex(EvaluationSet("twice", (hash_prompt(PROMPTS[0]), hash_prompt(PROMPTS[0]))))
    assert index.overlaps(ngram_hashes(words_of(fold(PROMPTS[0])), 8))


def test_an_empty_set_overlaps_nothing():
    assert not PromptIndex(EvaluationSet("empty", ())).overlaps(ngram_hashes(["a"], 8))


def covers(prompts, masks, row):
    """The rule by its definition, on tuples of words."""

    def grams(words):
        size = min(8, len(words))
        return {i: tuple(words[i : i + size]) for i in range(len(words) - size + 1)} if words else {}

    owners = {}
    for prompt in map(tuple, prompts):
        for gram in grams(prompt).values():
            owners.setdefault(gram, set()).add(prompt)
    of_row = set(grams(row).values())
    for prompt, mask in zip(prompts, masks, strict=True):
        spans = {start: range(start, min(start + 8, len(prompt))) for start in grams(prompt)}
        own = {start for start, gram in grams(prompt).items() if len(owners[gram]) == 1}
        in_own = {word for start in own for word in spans[start]}
        counted = {word for word in in_own if mask[word]} or in_own or set(range(len(prompt)))
        uses = own if in_own else set(spans)
        hit = {start for start, gram in grams(prompt).items() if gram in of_row}
        covered = {word for start in hit & uses for word in spans[start]} & counted
        anywhere = {word for start in hit for word in spans[start]}
        if len(covered) > len(counted) / 2 and (len(counted) >= 8 or len(anywhere) > len(prompt) / 2):
            return True
    return False


@given(st.data())
def test_the_index_agrees_with_the_rule_by_its_definition(data):
    words = st.lists(st.sampled_from("ab"), min_size=1, max_size=24)
    prompts = data.draw(st.lists(words, min_size=1, max_size=4, unique_by=tuple))
    masks = [data.draw(st.lists(st.booleans(), min_size=len(p), max_size=len(p))) for p in prompts]
    row = data.draw(st.one_of(words, st.sampled_from(prompts).map(lambda p: [*p[: len(p) * 3 // 4], "a", "b"])))
    hashed = tuple(
        EvaluationPrompt(ngram_hashes(p, 8), np.array(m, dtype=np.bool_)) for p, m in zip(prompts, masks, strict=True)
    )
    expected = covers(prompts, masks, row)
    assert PromptIndex(EvaluationSet("drawn", hashed)).overlaps(ngram_hashes(row, 8)) is expected


def test_the_starter_rows_do_not_overlap_the_starter_prompts():
    guard = Decontamination(["starter", "ifeval"])
    rows = [record(row["instruction"], *row["constraints"]) for row in rows_of(TRAIN_FILE)]
    assert reasons(guard, rows) == [None] * len(rows)
    prompts = [record(row["prompt"]) for row in rows_of(EVAL_FILE)]
    assert set(reasons(guard, prompts)) == {"overlaps an evaluation prompt (starter)"}


def test_planted_ifeval_prompts_are_found(shared_data):
    guard = Decontamination(["ifeval"])
    rng = random.Random(0)
    prompts = [row["prompt"] for row in rows_of(shared_data / "ifeval/input_data.jsonl")]
    vocabulary = " ".join(prompts).split()
    edited = []
    for prompt in prompts:
        words = prompt.split()
        words[rng.randrange(len(words))] = rng.choice(vocabulary)
        edited.append(" ".join(words))

    def found(texts):
        return sum(reason is not None for reason in reasons(guard, map(record, texts))) / len(texts)

    assert found(prompts) == 1
    assert found([f"Please help me.\n\n{prompt}\n\nThank you." for prompt in prompts]) == 1
    assert found(edited) > 0.93


def test_real_rows_that_do_not_hold_ifeval_prompts_are_kept(shared_data):
    guard = Decontamination(["starter", "ifeval"])
    pairs = [
        record(row["instruction"], *row["constraints"])
        for name in ("ifeval_extended", "follow_complex_instruction")
        for row in rows_of(shared_data / name / "joined_train.jsonl.gz")[::4]
    ]
    with gzip.open(shared_data / "chat/alpaca_en_demo.json.gz", "rt", encoding="utf-8") as file:
        plain = [record(f"{row['instruction']}\n{row['input']}") for row in json.load(file)]
    crab = [record(row["messages"][-2]["content"]) for row in rows_of(shared_data / "crab/rendered.jsonl.gz")]
    assert set(reasons(guard, plain + crab)) == {None}
    # Rows of the second set repeat the options of IFEval's yes-no questions word for word.
    assert sum(reason is not None for reason in reasons(guard, pairs)) < 0.02 * len(pairs)
