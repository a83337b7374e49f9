import json

import numpy as np
import pytest
from tests.evaluation.comparison.result_rows import TYPES, ifeval_row, scored_row

from misotune.errors import DataError, UsageError
from misotune.evaluation.comparison.compare import compare_results
from misotune.evaluation.comparison.difference import CLUSTER_FLIP, MCNEMAR, SIGN_FLIP, Difference, verdict
from misotune.evaluation.comparison.statistics import (
    NORMAL_QUANTILE,
    bootstrap_interval,
    holm,
    mcnemar_p,
    sign_flip_p,
    standard_error,
)
from misotune.evaluation.comparison.words import reach
from misotune.evaluation.evaluate import evaluate_responses
from misotune.evaluation.tasks import TaskOptions, load_task


def random_rows(seed, number, chance):
    generator = np.random.default_rng(seed)
    rows = []
    for key in range(number):
        strict = generator.random(1 + key % 3) < chance
        rows.append(ifeval_row(key, strict, strict | (generator.random(len(strict)) < 0.2)))
    return rows


@pytest.fixture
def two(write):
    return write("a", random_rows(1, 90, 0.6)), write("b", random_rows(2, 90, 0.8))


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")]


def lines(pair, kind, metric):
    return {line.label: line for line in pair.tables[kind] if line.metric == metric}


def test_each_figure_is_a_share_of_prompts_or_of_parts(two):
    (pair,) = compare_results(two).pairs
    rows = [read_lines(path / "samples.jsonl") for path in two]
    for line in pair.overall:
        kind = "strict" if "strict" in line.metric else "loose"
        if line.metric.startswith("prompt"):
            expected = [np.mean([all(row[kind]) for row in result]) for result in rows]
            assert (line.num_parts, line.test) == (None, MCNEMAR)
        else:
            expected = [np.mean([met for row in result for met in row[kind]]) for result in rows]
            assert (line.num_parts, line.test) == (180, SIGN_FLIP)
        assert (line.a, line.b) == pytest.approx(tuple(expected))
        assert line.num_prompts == 90
        assert line.low <= line.difference <= line.high
        assert line.corrected_p is None


def test_intervals_and_p_values_are_those_of_the_statistics(two):
    (pair,) = compare_results(two).pairs
    rows = [[row["strict"] for row in read_lines(path / "samples.jsonl")] for path in two]
    passed = np.array([[all(strict) for strict in result] for result in rows], dtype=float)
    prompt, instruction = pair.overall[:2]
    assert (prompt.low, prompt.high) == bootstrap_interval(passed[1] - passed[0], np.ones(90))
    assert prompt.p == mcnemar_p(int((passed[0] > passed[1]).sum()), int((passed[0] < passed[1]).sum()))
    met = np.array([[sum(strict) for strict in result] for result in rows], dtype=float)
    numbers = np.array([len(strict) for strict in rows[0]], dtype=float)
    assert (instruction.low, instruction.high) == bootstrap_interval(met[1] - met[0], numbers)
    assert instruction.p == sign_flip_p(met[1] - met[0])


def test_types_and_numbers_of_constraints_have_lines_with_corrected_p_values(two):
    (pair,) = compare_results(two).pairs
    by_type = lines(pair, "type", "inst_level_strict_acc")
    assert list(by_type) == sorted(TYPES)
    assert [by_type[name].num_parts for name in TYPES] == [90, 60, 30]
    assert [line.corrected_p for line in by_type.values()] == holm([line.p for line in by_type.values()])
    rows = [read_lines(path / "samples.jsonl") for path in two]
    third = [np.mean([row["strict"][2] for row in result if len(row["strict"]) == 3]) for result in rows]
    assert (by_type[TYPES[2]].a, by_type[TYPES[2]].b) == pytest.approx(tuple(third))
    by_number = lines(pair, "number of parts", "prompt_level_strict_acc")
    assert {label: line.num_prompts for label, line in by_number.items()} == {"1": 30, "2": 30, "3": 30}


def test_a_better_model_is_called_better_and_its_wins_are_listed(two):
    (pair,) = compare_results(two).pairs
    assert pair.main_metric == "prompt_level_strict_acc"
    assert pair.main.better == "b"
    assert verdict(pair.main, ("A", "B")) == "B is better"
    assert (len(pair.wins), len(pair.losses)) == (pair.main.num_b_higher, pair.main.num_a_higher)
    assert all(b.values[pair.main_metric] == 1 and a.values[pair.main_metric] == 0 for a, b in pair.wins)
    assert all(b.values[pair.main_metric] == 0 and a.values[pair.main_metric] == 1 for a, b in pair.losses)


@pytest.mark.parametrize(
    ("b", "low", "high", "p", "corrected_p", "words"),
    [
        (0.7, 0.1, 0.3, 0.049, None, "C is better"),
        (0.3, -0.3, -0.1, 0.001, 0.049, "A is better"),
        (0.7, 0.1, 0.3, 0.05, None, "within the noise"),
        (0.7, 0.1, 0.3, 0.001, 0.05, "within the noise"),
        (0.7, 0.0, 0.3, 0.001, None, "within the noise"),
        (0.3, -0.3, 0.0, 0.001, None, "within the noise"),
    ],
)
def test_only_what_interval_and_p_value_both_show_is_called_better(b, low, high, p, corrected_p, words):
    line = Difference("all", "em", 99, None, 0.5, b, low, high, 1, 2, 0.1, MCNEMAR, p, corrected_p)
    assert verdict(line, ("A", "C")) == words


def test_a_result_against_itself_is_within_the_noise(two):
    (pair,) = compare_results([two[0], two[0]]).pairs
    assert (pair.wins, pair.losses) == ([], [])
    for line in [*pair.overall, *(line for table in pair.tables.values() for line in table)]:
        assert (line.difference, line.low, line.high, line.p) == (0, 0, 0, 1)
        assert verdict(line, ("A", "B")) == "within the noise"
    # Six prompts that differ, all one way, are the fewest that McNemar's test can tell from chance.
    assert pair.main.noise == 6 / 90


def test_swapped_results_give_the_negative(two):
    (there,), (back,) = compare_results(two).pairs, compare_results(two[::-1]).pairs
    assert [b.key for _, b in there.wins] == [a.key for a, _ in back.losses]
    assert there.tables.keys() == back.tables.keys()
    for one, other in zip(
        [*there.overall, *(line for table in there.tables.values() for line in table)],
        [*back.overall, *(line for table in back.tables.values() for line in table)],
        strict=True,
    ):
        assert one.difference == -other.difference
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
        assert (one.p, one.corrected_p, one.noise) == (other.p, other.corrected_p, other.noise)
        assert (one.better, other.better) in {("a", "b"), ("b", "a"), (None, None)}


def all_lines(pair):
    return [*pair.overall, *(line for table in pair.tables.values() for line in table)]


def test_where_every_prompt_is_a_cluster_of_its_own_nothing_changes(two, write):
    alone = [
        write(f"alone {at}", [{**row, "cluster": f"text {row['key']}"} for row in read_lines(path / "samples.jsonl")])
        for at, path in enumerate(two)
    ]
    (plain,), (clustered,) = compare_results(two).pairs, compare_results(alone).pairs
    assert all_lines(clustered) == all_lines(plain)
    assert (clustered.num_clusters, clustered.notes) == (None, [])
    assert compare_results(alone).to_json()["method"] == compare_results(two).to_json()["method"]


def test_prompts_on_one_text_are_drawn_and_flipped_together(write):
    generator = np.random.default_rng(3)
    verdicts = {name: (generator.random(48) < chance).astype(int) for name, chance in (("a", 0.4), ("b", 0.7))}
    results = [
        write(
            name,
            [
                scored_row(k, {"contains": int(v)}, cluster=f"text {k % 16}", group="xyz"[k // 16])
                for k, v in enumerate(met)
            ],
            task="squad",
        )
        for name, met in verdicts.items()
    ]
    comparison = compare_results(results)
    (pair,) = comparison.pairs
    sums, numbers = (verdicts["b"] - verdicts["a"]).reshape(3, 16).sum(axis=0).astype(float), np.full(16, 3.0)
    assert (pair.num_clusters, pair.main.num_clusters, pair.main.num_prompts) == (16, 16, 48)
    assert (pair.main.low, pair.main.high) == bootstrap_interval(sums, numbers)
    assert pair.main.noise == NORMAL_QUANTILE * standard_error(sums, numbers)
    assert (pair.main.test, pair.main.p) == (CLUSTER_FLIP, sign_flip_p(sums))
    # Wins and losses are prompts still.
    assert pair.main.num_b_higher == len(pair.wins) == int((verdicts["b"] > verdicts["a"]).sum())
    # Each group has one prompt of each text: there they stand alone.
    by_group = lines(pair, "group", "contains")
    assert {(line.num_prompts, line.num_clusters, line.test) for line in by_group.values()} == {(16, None, MCNEMAR)}
    assert pair.notes == [
        "the 48 prompts make up 16 clusters that share a text; intervals, noise and tests take each cluster as one"
    ]
    assert comparison.to_json()["method"] == {
        "interval": "95 %, percentile bootstrap over clusters of prompts",
        "resamples": 10_000,
        "seed": 0,
        "num_clusters": {"B": 16},
    }


def test_many_prompts_in_five_clusters_can_show_no_difference(write):
    a, b = (write(name, [scored_row(k, {"met": int(name == "b")}, cluster=k % 5) for k in range(500)]) for name in "ab")
    (pair,) = compare_results([a, b]).pairs
    assert (pair.main.difference, pair.main.noise, pair.main.better) == (1.0, None, None)
    assert pair.main.p == 2 / 2**5
    assert reach(pair.main) == "500 prompts in 5 clusters could show no difference at all"


def test_the_order_of_rows_and_the_names_of_clusters_change_nothing_but_the_draws(write):
    def compared(name, order, prefix):
        rows = [
            [scored_row(k, {"met": int((k * step) % 7 < 3)}, cluster=f"{prefix}{k % 9}") for k in order]
            for step in (3, 5)
        ]
        return compare_results([write(f"{name}{at}", these) for at, these in enumerate(rows)]).pairs[0].main

    one, other = compared("x", range(90), "text "), compared("y", [*range(89, -1, -1)], "")
    assert (one.difference, one.p, one.num_clusters) == (other.difference, other.p, other.num_clusters)
    assert one.noise == pytest.approx(other.noise)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.02)


def test_prompts_flattened_from_one_hang_together(write):
    def rows(chance):
        met = np.random.default_rng(int(100 * chance)).random(120) < chance
        return [{**ifeval_row(k, [met[k]]), "key": f"{1000 + k // 3}-{k % 3}"} for k in range(120)]

    a, b = (write(name, rows(chance), task="ifeval-flatten") for name, chance in (("a", 0.5), ("b", 0.7)))
    (pair,) = compare_results([a, b]).pairs
    assert pair.num_clusters == 40
    assert [(line.test, line.num_clusters) for line in pair.overall] == [(CLUSTER_FLIP, 40)] * 4
    # The needle test's keys are LENGTH-DEPTH: lengths are no clusters.
    a, b = (write(f"needle {name}", rows(chance), task="needle") for name, chance in (("a", 0.5), ("b", 0.7)))
    assert compare_results([a, b]).pairs[0].num_clusters is None


def test_numbers_that_are_no_verdicts_are_tested_by_sign_flips_and_compared_by_group(write):
    generator = np.random.default_rng(0)
    scores = generator.random(40)
    a = write("a", [scored_row(k, {"f1": v}, group="xy"[k % 2]) for k, v in enumerate(scores)], task="drop")
    b = write("b", [scored_row(k, {"f1": v**0.5}, group="xy"[k % 2]) for k, v in enumerate(scores)], task="drop")
    (pair,) = compare_results([a, b]).pairs
    assert pair.main.test == SIGN_FLIP
    assert pair.main.a == pytest.approx(scores.mean())
    assert pair.main.better == "b"
    assert len(pair.wins) == 40
    assert [(line.label, line.num_prompts) for line in pair.tables["group"]] == [("x", 20), ("y", 20)]


def test_kinds_of_parts_are_called_what_the_scores_call_them(write):
    def result(name, met):
        rows = [scored_row(k, {"met": [met, 1]}, types=["and", "chain"]) for k in range(8)]
        return write(name, rows, groups={"composition type": {"and": {}, "chain": {}, "selection": {}}})

    (pair,) = compare_results([result("a", 0), result("b", 1)]).pairs
    assert list(pair.tables) == ["composition type"]
    assert [(line.label, line.difference) for line in pair.tables["composition type"]] == [("and", 1), ("chain", 0)]
    assert [line.corrected_p for line in pair.tables["composition type"]] == [2 * 2 / 2**8, 1.0]


def test_five_prompts_can_show_no_difference(write):
    a, b = (write(name, [ifeval_row(k, [name == "b"]) for k in range(5)]) for name in "ab")
    (pair,) = compare_results([a, b]).pairs
    assert (pair.main.difference, pair.main.noise, pair.main.better) == (1.0, None, None)


def test_several_results_are_each_compared_with_the_first(two, write):
    comparison = compare_results([*two, write("c", random_rows(3, 90, 0.6))])
    assert [pair.letters for pair in comparison.pairs] == [("A", "B"), ("A", "C")]
    assert [pair.results[0] for pair in comparison.pairs] == [comparison.results[0]] * 2
    assert comparison.pairs[0].overall == compare_results(two).pairs[0].overall


def test_one_result_is_not_enough_and_rows_scored_otherwise_are_refused(two, write):
    with pytest.raises(UsageError, match="compare takes 2 to 26 results"):
        compare_results(two[:1])
    c = write("c", [scored_row(1, {"f1": 1.0})])
    for name, scores in (("d", {"em": 1.0}), ("e", {"f1": [1.0]})):
        with pytest.raises(DataError, match=r"key 1 is not scored alike in .*c and .*"):
            compare_results([c, write(name, [scored_row(1, scores)])])
    with pytest.raises(DataError, match="its rows have no scores"):
        compare_results([write("f", [scored_row(1, {})])] * 2)


def test_json_says_all_of_it(two):
    content = json.loads(json.dumps(compare_results(two).to_json(), allow_nan=False))
    (pair,) = content["pairs"]
    assert pair["verdict"] == "B is better"
    assert pair["overall"][0]["difference"] == pytest.approx(pair["overall"][0]["b"] - pair["overall"][0]["a"])
    assert content["results"]["B"]["model"] == "b"
    assert content["method"] == {"interval": "95 %, percentile bootstrap over prompts", "resamples": 10_000, "seed": 0}


@pytest.mark.usefixtures("punkt")
def test_gpt4s_responses_half_of_them_in_lower_case_are_worse_where_case_counts(shared_data, tmp_path):
    task = load_task("ifeval", TaskOptions(data=shared_data / "ifeval" / "input_data.jsonl", offline=True))
    file = shared_data / "ifeval" / "input_response_data_gpt4_20231107_145030.jsonl"
    rows = read_lines(file)
    lowered = [{**row, "response": row["response"].lower()} if at % 2 else row for at, row in enumerate(rows)]
    (tmp_path / "lowered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lowered), encoding="utf-8")
    scores = [
        evaluate_responses(file, task, out=tmp_path / "whole"),
        evaluate_responses(tmp_path / "lowered.jsonl", task, out=tmp_path / "lower"),
    ]
    (pair,) = compare_results([tmp_path / "whole", tmp_path / "lower"]).pairs
    for line in pair.overall:
        assert (line.a, line.b) == pytest.approx([result.figures[line.metric] for result in scores])
        assert line.better == "a"
    assert 100 * pair.main.a == pytest.approx(77.08, abs=0.005)
    assert pair.main.num_a_higher + pair.main.num_b_higher == len(pair.wins) + len(pair.losses)
    by_type = lines(pair, "constraint type", "inst_level_strict_acc")
    for name, group in scores[1].groups["constraint type"].items():
        assert (by_type[name].b, by_type[name].num_parts) == (pytest.approx(group["strict"]), group["number"])
    assert [name for name, line in by_type.items() if line.better] == ["change_case:english_capital"]
    assert by_type["punctuation:no_comma"].difference == 0
    assert list(lines(pair, "number of constraints", "prompt_level_strict_acc")) == ["1", "2", "3"]
