import json

import numpy
import pytest

from misotune.errors import DataError, UsageError
from misotune.evaluation.context.model_tokens import ModelTokens
from misotune.evaluation.context.needle import KEYWORDS, NEEDLE, QUESTION, NeedleScoring, load_needle
from misotune.evaluation.evaluate import evaluate_responses
from misotune.evaluation.task import prompts_sha256

OPENING = "You are a helpful AI assistant that answers a question using only the provided document: \n"
CLOSING = "\n\nQuestion: What is the best thing to do in San Francisco?"


def document_of(prompt):
    assert prompt.prompt.startswith(OPENING)
    assert prompt.prompt.endswith(CLOSING)
    return prompt.prompt[len(OPENING) : -len(CLOSING)]


def test_every_document_keeps_its_length_its_text_and_its_needle(tokens, haystack, text):
    task = load_needle(tokens, haystack=haystack, num_lengths=5, num_depths=6)
    assert [(p.length, p.depth) for p in task.prompts] == [
        (length, depth) for length in sorted({p.length for p in task.prompts}) for depth in (0, 20, 40, 60, 80, 100)
    ]
    assert task.prompts[0].length == 200
    for prompt in task.prompts:
        document = document_of(prompt)
        assert document.count(NEEDLE) == 1
        assert prompt.num_tokens == tokens.text(document) <= prompt.length
        assert tokens.prompt(prompt.messages) + task.max_new_tokens <= tokens.context
        before, after = (part.strip() for part in document.split(NEEDLE))
        around = f"{before} {after}".strip()
        assert text.startswith(around)
        # The room that is left is less than a word, or a sentence where the rest of one was left out.
        left = prompt.length - prompt.num_tokens
        if prompt.depth < 100:
            assert left <= tokens.text(text[len(around) :].split()[0]) + 3
            assert len(before) <= len(around) * prompt.depth / 100
        else:
            assert not after
            assert left <= 150
        assert not before or before.rstrip('"')[-1] in ".!?"
        if prompt.depth == 0:
            assert not before


def test_the_longest_documents_fill_the_models_context(tokens, haystack):
    task = load_needle(tokens, haystack=haystack, num_lengths=3, num_depths=3, max_new_tokens=50)
    longest = max(tokens.prompt(prompt.messages) for prompt in task.prompts)
    assert 3000 - 50 - 15 <= longest <= 3000 - 50
    assert task.max_new_tokens == 50


def test_a_prompt_fits_although_the_template_costs_more_around_a_document(haystack):
    def count_prompt(turns):
        num_words = len(turns[0]["content"].split())
        return num_words + (9 if num_words > 100 else 0)

    words = ModelTokens(lambda text: len(text.split()), count_prompt, 1000)
    task = load_needle(words, haystack=haystack, num_lengths=2, num_depths=2)
    assert max(count_prompt(prompt.messages) for prompt in task.prompts) == 1000 - task.max_new_tokens


def test_lengths_and_depths_are_the_papers(tokens, haystack):
    task = load_needle(tokens, haystack=haystack, num_lengths=20, num_depths=20, max_length=2000)
    lengths = numpy.round(numpy.linspace(200, 2000, num=20, endpoint=True)).astype(int)
    depths = numpy.round(numpy.linspace(0, 100, num=20, endpoint=True)).astype(int)
    assert [(p.length, p.depth) for p in task.prompts] == [(n, d) for n in lengths for d in depths]
    assert len({p.key for p in task.prompts}) == 400
    assert prompts_sha256(task.prompts) == prompts_sha256(task.all_prompts)


def test_the_needle_is_the_papers():
    assert NEEDLE == "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
    assert KEYWORDS == ("eat", "sandwich", "sit", "dolores", "park", "sunny", "day")
    assert QUESTION == "What is the best thing to do in San Francisco?"


def test_recall_is_a_literal_loop_over_keywords_and_groups_are_means(tokens, haystack):
    task = load_needle(tokens, haystack=haystack, num_lengths=2, num_depths=3, max_length=400)
    responses = [
        "Eat a sandwich and sit in Dolores Park on a sunny day.",
        "Eating sandwiches, sitting in the parking lot on Sunday",
        "eat, eat, EAT",
        "",
        "Dolores-Park!",
        "a sunny\nday",
    ]
    recalls = [7 / 7, 0 / 7, 1 / 7, 0 / 7, 2 / 7, 2 / 7]
    scoring = NeedleScoring()
    samples = scoring.score(task.prompts, responses)
    rows = [json.loads(json.dumps(sample.to_row())) for sample in samples]
    assert [row["scores"]["recall"] for row in rows] == pytest.approx(recalls)
    assert [(row["key"], row["length"], row["depth"], row["group"]) for row in rows[:2]] == [
        ("200-0", 200, 0, "200 tokens"),
        ("200-50", 200, 50, "200 tokens"),
    ]
    assert rows[4]["keywords"] == ["dolores", "park"]
    summary = scoring.summarize(samples)
    assert summary.figures == {"recall": pytest.approx(sum(recalls) / 6)}
    assert summary.groups["length"] == {
        "200 tokens": {"number": 3, "recall": pytest.approx(8 / 21)},
        "400 tokens": {"number": 3, "recall": pytest.approx(4 / 21)},
    }
    assert summary.groups["depth"] == {
        "0 %": {"number": 2, "recall": pytest.approx(7 / 14)},
        "50 %": {"number": 2, "recall": pytest.approx(2 / 14)},
        "100 %": {"number": 2, "recall": pytest.approx(3 / 14)},
    }


def test_a_short_text_is_repeated_and_that_is_noted(tokens, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("One river runs. Two rivers run.")
    task = load_needle(tokens, haystack=path, num_lengths=2, num_depths=2, limit=3)
    assert (len(task.prompts), len(task.all_prompts)) == (3, 4)
    assert task.notes == (
        f"documents of 200 to {task.all_prompts[-1].length} tokens, the needle included; 2 depths each",
        f"{path}: its 6 words are repeated to fill the longest documents",
    )
    assert document_of(task.prompts[1]).startswith("One river runs. Two rivers run. One river runs.")


def test_a_long_context_is_used_up_to_8000_tokens_unless_asked_otherwise(haystack):
    words = ModelTokens(lambda text: len(text.split()), lambda turns: len(turns[0]["content"].split()), 131072)
    task = load_needle(words, haystack=haystack, num_lengths=2, num_depths=2)
    assert task.prompts[-1].length == 8000
    task = load_needle(words, haystack=haystack, num_lengths=2, num_depths=2, max_length=9000)
    assert task.prompts[-1].length == 9000


@pytest.mark.parametrize(
    ("options", "context", "message"),
    [
        ({"max_length": 2990}, 3000, r"--needle-max-length 2990: the model's context of 3000 leaves \d+ tokens"),
        ({"min_length": 20}, 3000, r"--needle-min-length 20: too short for the needle and a text; allowed: 42 on"),
        ({}, 300, r"the longest document \(\d+ tokens\) must be longer than the shortest \(200\)"),
        ({"max_length": 200}, 3000, r"the longest document \(200 tokens\) must be longer"),
        ({}, None, r"the model's context is not known; give the longest document with --needle-max-length"),
        ({"num_lengths": 1}, 3000, r"--needle-lengths 1: allowed: 2 to"),
        ({"num_depths": 102}, 3000, r"--needle-depths 102: allowed: 2 to 101"),
    ],
)
def test_lengths_that_cannot_be_are_refused(haystack, options, context, message):
    words = ModelTokens(lambda text: len(text.split()), lambda turns: len(turns[0]["content"].split()), context)
    with pytest.raises(UsageError, match=message):
        load_needle(words, haystack=haystack, **options)


def test_a_text_that_holds_the_needle_is_refused(tokens, tmp_path):
    path = tmp_path / "needle.txt"
    path.write_text(f"First.\n{NEEDLE.replace('in San', 'in' + chr(10) + 'San')} Last.")
    with pytest.raises(DataError, match="holds the needle already"):
        load_needle(tokens, haystack=path)


def test_real_essays_with_a_byte_level_tokenizer(shared_data, tokenizer):
    path = shared_data / "haystack" / "paul_graham_essays.jsonl.gz"
    task = load_needle(ModelTokens.of(tokenizer, 4096), haystack=path)
    assert len(task.prompts) == 8 * 11
    for prompt in task.prompts:
        assert document_of(prompt).count(NEEDLE) == 1
        assert 0 <= prompt.length - prompt.num_tokens <= (400 if prompt.depth == 100 else 20)
    assert len(task.notes) == 1


def test_responses_made_elsewhere_are_scored_by_key_or_prompt_and_drawn(haystack, tmp_path):
    words = ModelTokens(lambda text: len(text.split()), lambda turns: len(turns[0]["content"].split()), 3000)
    task = load_needle(words, haystack=haystack, num_lengths=2, num_depths=2, max_length=400)
    answers = ["eat a sandwich", "", NEEDLE, "sunny day"]
    recalls = [2 / 7, 0, 1, 2 / 7]
    for number, field in enumerate(("key", "prompt")):
        path = tmp_path / f"by-{field}.jsonl"
        rows = [{field: getattr(p, field), "response": r} for p, r in zip(task.prompts, answers, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        scores = evaluate_responses(path, task, out=tmp_path / f"out{number}")
        assert scores.figures == {"recall": pytest.approx(sum(recalls) / 4)}
        assert {file.name for file in scores.folder.iterdir()} >= {"scores.json", "samples.jsonl", "needle.svg"}
