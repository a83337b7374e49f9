"""The figures, counted again question by question and instruction by instruction."""

import random

import pytest

from misotune.evaluation.complexbench.figures import after_dependencies, summarize
from misotune.evaluation.task import Sample


@pytest.mark.parametrize(
    ("verdicts", "depends_on", "counting"),
    [
        ([True, True], [[], [0]], [True, True]),
        ([False, True], [[], [0]], [False, False]),
        ([True, False], [[], [0]], [True, False]),
        # One level: the second does not count, but it said yes, and the third hangs on that alone.
        ([False, True, True], [[], [0], [1]], [False, False, True]),
        ([False, True, True], [[], [0], [0, 1]], [False, False, False]),
        ([True, False, True], [[1, 2], [], [1]], [False, False, False]),
        ([True], [[0]], [True]),
    ],
    ids=["both-met", "held-up", "itself-unmet", "one-level", "several", "later-questions", "itself"],
)
def test_a_question_counts_when_it_and_those_it_depends_on_are_met(verdicts, depends_on, counting):
    assert after_dependencies(verdicts, depends_on) == counting


def _question(counts, dimensions=("Topic",), compositions=(), origin="judge", trouble=None):
    return {
        "counts": counts, "constraint_dimensions": [*dimensions], "composition_types": [*compositions],
        "origin": origin, "trouble": trouble,
    }  # fmt: skip


def _sample(questions, category="And", task="Logical Reasoning", compositions=("And",), group=None):
    found = {
        "group": category, "task_type": task, "composition_types": [*compositions], "task_group": group,
        "questions": questions,
    }  # fmt: skip
    return Sample(0, "p", "r", found)


def _random_samples(seed):
    draw = random.Random(seed)
    dimensions = ["Keywords", "Length", "Topic", "Factuality", "Something new"]
    return [
        _sample(
            [
                _question(
                    draw.random() < 0.7,
                    draw.sample(dimensions, draw.choice([0, 1, 1, 2])),
                    draw.choice([[], ["And"], ["Chain"], ["Selection"], ["And", "Selection"]]),
                )
                for _ in range(draw.randint(1, 6))
            ],
            draw.choice(["And", "Chain_1", "Chain_2", "Selection_1", "Selection_and_Chain_2"]),
            draw.choice(["Creative Writing", "Logical Reasoning"]),
            draw.choice([("And",), ("Selection", "And"), ("Chain", "And")]),
            draw.choice([None, "a", "b", "c", "d"]),
        )
        for _ in range(60)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_share_is_what_a_count_by_hand_gives(seed):
    samples = _random_samples(seed)
    kinds = {}

    def tally(kind, label, counts):
        met, number = kinds.setdefault(kind, {}).get(label, (0, 0))
        kinds[kind][label] = (met + counts, number + 1)

    types = {"Keywords": "Lexical", "Length": "Structure", "Topic": "Semantic", "Factuality": "Utility"}
    for sample in samples:
        for question in sample.found["questions"]:
            counts = question["counts"]
            tally("all", "all", counts)
            tally("category", sample.found["group"], counts)
            tally("category average", sample.found["group"].split("_")[0], counts)
            tally("composition", "_".join(sorted(sample.found["composition_types"])), counts)
            tally("task type", sample.found["task_type"], counts)
            for name in question["constraint_dimensions"]:
                tally("constraint dimension", name, counts)
                tally("constraint type", types.get(name, "Others"), counts)
            for name in question["composition_types"]:
                tally("composition type", name, counts)
    summary = summarize(samples)
    ((met, number),) = kinds.pop("all").values()
    assert next(iter(summary.figures.items())) == ("overall_drfr", met / number)
    assert summary.counts == {"questions": number, "questions_by_rule": 0, "questions_unanswered": 0}
    assert summary.groups == {
        kind: {label: {"number": n, "drfr": met / n} for label, (met, n) in labels.items()}
        for kind, labels in kinds.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_coherent_tests_are_what_a_count_by_hand_gives(seed):
    samples = _random_samples(seed)
    groups = {}
    for sample in samples:
        groups.setdefault(sample.found["task_group"], []).append(sample)
    for name, is_depth in {"single": lambda n: n == 1, "multiple": lambda n: n > 1}.items():
        origin, coherent = [], []
        for group in groups.values():
            num_selections = len([q for q in group[0].found["questions"] if "Selection" in q["composition_types"]])
            if is_depth(num_selections):
                met = [all(q["counts"] for q in sample.found["questions"]) for sample in group]
                origin += met
                coherent.append(all(met))
        figures = summarize(samples).figures
        if not origin:
            assert f"{name}_origin_test" not in figures
            continue
        assert figures[f"{name}_origin_test"] == sum(origin) / len(origin)
        assert figures[f"{name}_coherent_test"] == sum(coherent) / len(coherent)
        if any(origin):
            drop = 1 - (sum(coherent) / len(coherent)) / (sum(origin) / len(origin))
            assert figures[f"{name}_relative_drop"] == pytest.approx(drop)


def test_the_average_of_selection_has_the_nested_ones_in_it_as_published():
    samples = [_sample([_question(True)], "Selection_1"), _sample([_question(False)], "Selection_and_Chain_2")]
    assert summarize(samples).groups["category average"] == {"Selection": {"number": 2, "drfr": 0.5}}


def test_without_selections_there_is_no_coherent_test():
    assert list(summarize([_sample([_question(True)])]).figures) == ["overall_drfr"]


def test_a_group_that_fails_everywhere_has_no_relative_drop():
    figures = summarize([_sample([_question(False, compositions=["Selection"])], "Selection_1", group="a")]).figures
    assert figures == {"overall_drfr": 0.0, "single_origin_test": 0.0, "single_coherent_test": 0.0}


def test_questions_without_a_clear_answer_are_counted_and_noted():
    questions = [_question(False, trouble="empty"), _question(True, origin="rule"), _question(False, trouble="empty")]
    summary = summarize([_sample(questions)])
    assert summary.counts == {"questions": 3, "questions_by_rule": 1, "questions_unanswered": 2}
    assert summary.notes[0].startswith("2 of 3 questions have no clear answer of the judge (2: empty)")
