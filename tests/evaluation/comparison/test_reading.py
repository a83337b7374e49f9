import re
from pathlib import Path

import pytest
from tests.evaluation.comparison.result_rows import ifeval_row, scored_row

from misotune.errors import DataError, UsageError
from misotune.evaluation.comparison.metrics import count_clusters
from misotune.evaluation.comparison.reading import find_results, notes_on_pair, pair_samples, read_result


def test_a_result_is_its_scores_and_its_rows_by_key(write):
    rows = [ifeval_row(7, [1, 0], [1, 1]), scored_row("a", {"f1": 0.5, "met": [1, 0]}, types=["x", "y"], group="easy")]
    result = read_result(write("one", rows))
    assert (result.task, result.model) == ("ifeval", "one")
    assert list(result.samples) == ["7", "a"]
    assert result.samples["7"].values == {
        "prompt_level_strict_acc": 0.0,
        "inst_level_strict_acc": (1.0, 0.0),
        "prompt_level_loose_acc": 1.0,
        "inst_level_loose_acc": (1.0, 1.0),
    }
    assert result.samples["a"].values == {"f1": 0.5, "met": (1.0, 0.0)}
    assert (result.samples["a"].types, result.samples["a"].group) == (("x", "y"), "easy")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": 1, "prompt": "p"}, "samples.jsonl line 1: no field 'response'"),
        ({"key": 1, "prompt": "p", "response": "r"}, "needs 'scores', or 'strict' and 'loose' as lists"),
        (scored_row(1, 3), "'scores' must hold a number or a list of numbers for each metric, got 3"),
        (scored_row(1, {"f1": 1.5}), "f1 must be a number from 0 to 1, got 1.5"),
        (scored_row(1, {"f1": float("nan")}), "f1 must be a number from 0 to 1, got nan"),
        (scored_row(1, {"met": [0, None]}), "met must be a number from 0 to 1, got None"),
        (scored_row(1, {"met": [0, 1]}, types=["x"]), "met has 2 parts and 1 types"),
    ],
)
def test_a_bad_row_is_named(write, row, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_result(write("one", [row]))


def test_a_key_that_stands_twice_is_refused(write):
    with pytest.raises(DataError, match=r"samples\.jsonl line 2: key 1 stands there twice"):
        read_result(write("one", [ifeval_row(1, [1]), ifeval_row("1", [0])]))


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("{}", "no field 'task'"), ("[]", "no field")])
def test_broken_scores_are_named(write, text, message):
    folder = write("one", [ifeval_row(1, [1])])
    (folder / "scores.json").write_text(text)
    with pytest.raises(DataError, match=rf"scores\.json: {message}"):
        read_result(folder)


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no result of eval"):
        read_result(tmp_path)


def test_results_are_found_in_runs_in_folders_of_scores_and_by_their_files(write, tmp_path):
    folder = write("runs/r/scores/ifeval", [ifeval_row(1, [1])])
    write("runs/r/scores/starter", [ifeval_row(1, [1])], task="starter")
    write("runs/r/scores/.starter.partial", [ifeval_row(1, [1])], task="starter")
    alone = write("scores/m/ifeval", [ifeval_row(1, [1])])
    run = tmp_path / "runs" / "r"
    assert find_results([folder, folder / "scores.json"]) == [folder, folder]
    assert find_results([run, alone]) == [folder, alone]
    assert find_results([run / "scores", tmp_path / "scores" / "m"]) == [folder, alone]
    assert find_results([run, run], "starter") == [run / "scores" / "starter"] * 2
    with pytest.raises(UsageError, match=r"several tasks are shared, choose one with --task: .*ifeval, starter"):
        find_results([run, run])
    with pytest.raises(UsageError, match="no result of task 'drop'; it holds ifeval, starter"):
        find_results([run, alone], "drop")
    with pytest.raises(UsageError, match="they share no task"):
        find_results([run, write("else", [ifeval_row(1, [1])], task="drop")])
    with pytest.raises(UsageError, match="no such folder; name a result folder"):
        find_results([run, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: holds no result of eval"):
        find_results([tmp_path / "empty", run])


def test_a_result_whose_replacement_was_killed_is_brought_back(write):
    folder = write("one", [ifeval_row(1, [1])])
    folder.rename(folder.with_name(".one.old"))
    assert find_results([folder]) == [folder]


def test_the_folder_one_stands_in_is_a_result_too(write, monkeypatch):
    monkeypatch.chdir(write("one", [ifeval_row(1, [1])]))
    assert find_results([Path()]) == [Path()]


def pair(write, rows_a, rows_b, fields_a=None, fields_b=None):
    a = read_result(write("a", rows_a, **(fields_a or {})))
    b = read_result(write("b", rows_b, **(fields_b or {})))
    pairs = pair_samples(a, b)
    return pairs, notes_on_pair(a, b, pairs)


def test_rows_are_paired_on_their_keys_in_the_order_of_the_first(write):
    rows = [ifeval_row(key, [1]) for key in (3, 1, 2)]
    pairs, notes = pair(write, rows, rows[::-1])
    assert [(a.key, b.key) for a, b in pairs] == [("3", "3"), ("1", "1"), ("2", "2")]
    assert notes == []


def test_different_tasks_and_prompts_are_refused_and_both_are_named(write):
    rows = [ifeval_row(1, [1])]
    with pytest.raises(UsageError, match=r"a is of ifeval, .*b of starter"):
        pair(write, rows, rows, {}, {"task": "starter"})
    with pytest.raises(UsageError, match=r"a has prompts_sha256 samesamesame…, .*b has other"):
        pair(write, rows, rows, {}, {"prompts_sha256": "other"})
    with pytest.raises(UsageError, match="have no prompt in common"):
        pair(write, rows, [ifeval_row(2, [1])])


@pytest.mark.parametrize("other", [{**ifeval_row(1, [1]), "prompt": "Else"}, ifeval_row(1, [1, 1])])
def test_one_key_with_two_prompts_is_refused(write, other):
    with pytest.raises(UsageError, match=r"key 1 asks for something else in .*a than in .*b"):
        pair(write, [ifeval_row(1, [1])], [other], {"settings": {"limit": 1}}, {"prompts_sha256": "other"})


def test_with_a_limit_the_shared_prompts_are_compared_and_counted(write):
    rows = [ifeval_row(key, [1]) for key in range(5)]
    pairs, notes = pair(write, rows, rows[:2], {}, {"settings": {"limit": 2}, "prompts_sha256": "other"})
    assert len(pairs) == 2
    assert len(notes) == 1
    assert re.match(r"only 2 prompts are in both and are compared; .*a has 5, .*b has 2", notes[0])


def test_clusters_are_read_from_the_rows_and_from_the_keys_of_flattened_prompts(write):
    rows = [{**ifeval_row(1, [1]), "key": "1000-0"}, {**ifeval_row(2, [1]), "key": "1000-1", "cluster": 7}]
    assert [sample.cluster for sample in read_result(write("one", rows)).samples.values()] == [None, "7"]
    flat = read_result(write("two", rows, task="ifeval-flatten"))
    assert [sample.cluster for sample in flat.samples.values()] == ["1000", "7"]


def test_a_result_of_before_there_were_clusters_takes_them_from_the_other_and_others_are_refused(write):
    def rows(*clusters):
        found = [scored_row(key, {"f1": 1}, cluster=cluster) for key, cluster in enumerate(clusters)]
        return [{name: value for name, value in row.items() if value is not None} for row in found]

    new, old = rows("x", "x", "y"), rows(None, None, None)
    for one, other in ((new, old), (old, new), (new, new)):
        pairs, notes = pair(write, one, other)
        assert count_clusters(pairs) == 2
        assert notes == [
            "the 3 prompts make up 2 clusters that share a text; intervals, noise and tests take each cluster as one"
        ]
    assert count_clusters(pair(write, old, old)[0]) is None
    # A prompt that stands alone is in no cluster, whatever its key.
    assert count_clusters(pair(write, *[rows("1", None, "1")] * 2)[0]) == 2
    with pytest.raises(UsageError, match=r"key 1 is of cluster 'x' in .*a and of 'y' in .*b; score both with the same"):
        pair(write, new, rows("x", "y", "y"))


def test_settings_and_versions_that_differ_are_noted(write):
    rows = [ifeval_row(1, [1])]
    one = {
        "settings": {"max_new_tokens": 512, "backend": "hf", "limit": None},
        "versions": {"torch": "2.1", "nltk": "3"},
    }
    two = {"settings": {"max_new_tokens": 1280, "backend": "hf", "limit": 1}, "versions": {"torch": "2.2", "nltk": "3"}}
    assert pair(write, rows, rows, one, two)[1] == [
        "settings differ: max_new_tokens 512 and 1280",
        "versions differ: torch 2.1 and 2.2",
    ]
    two = {"settings": {"responses": "r.jsonl"}}
    assert pair(write, rows, rows, one, two)[1] == ["the responses of b were made elsewhere; how is not known here"]
