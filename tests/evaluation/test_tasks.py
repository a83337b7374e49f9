import importlib.resources
import json

import pytest

from misotune.errors import DataError, RunError, UsageError
from misotune.evaluation.tasks import TaskOptions, load_task

ROW = {"key": 1, "prompt": "Hi.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_ifeval_reads_a_file_and_limit_takes_the_first(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [{**ROW, "key": key} for key in (3, 1, 2)])
    task = load_task("ifeval", TaskOptions(data=data, limit=2, offline=True))
    assert ([p.key for p in task.prompts], len(task.all_prompts)) == ([3, 1], 3)
    assert task.source == str(data)
    assert task.max_new_tokens == 1280


def test_a_verifier_that_draws_at_random_is_noted(tmp_path):
    row = {
        "instruction_id_list": ["keywords:letter_frequency"],
        "kwargs": [{"letter": "#", "let_frequency": 4, "let_relation": "at least"}],
    }
    task = load_task("ifeval", TaskOptions(data=write_rows(tmp_path / "a.jsonl", [{**ROW, **row}]), offline=True))
    assert task.notes == (
        "key 1: the verifier of keywords:letter_frequency draws what its arguments do not state at random "
        "(seeded, so the verdict repeats)",
    )


def test_the_hubs_rows_are_read_without_their_nulls(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_list([{**ROW, "kwargs": [{"num_words": None, "relation": None}]}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    task = load_task("ifeval", TaskOptions(offline=True))
    assert [dict(entry) for entry in task.prompts[0].kwargs] == [{}]
    assert task.source == "google/IFEval"


def test_a_hub_out_of_reach_names_the_way_out(monkeypatch):
    import datasets

    def fail(name, split):
        raise ConnectionError("Couldn't reach 'google/IFEval' on the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(RunError, match=r"\(Couldn't reach 'google/IFEval' on the Hub\); give .* with --data FILE"):
        load_task("ifeval")


def test_an_unknown_task_names_the_nearest_and_all():
    with pytest.raises(
        UsageError, match=r"unknown task 'ifevl'; did you mean 'ifeval'\? allowed: ifeval, ifeval-flatten, complexbench"
    ):
        load_task("ifevl")


def test_starter_takes_no_data(tmp_path):
    with pytest.raises(UsageError, match="task 'starter' has its own prompts; leave out --data"):
        load_task("starter", TaskOptions(data=tmp_path / "a.jsonl"))


def test_starter_is_read_out_of_the_package(tmp_path, monkeypatch):
    (tmp_path / "starter").mkdir()
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match="the starter set is missing from this installation"):
        load_task("starter")
    write_rows(tmp_path / "starter" / "eval.jsonl", [{**ROW, "key": "s1", "domain": "food"}])
    assert [p.key for p in load_task("starter").prompts] == ["s1"]


@pytest.mark.usefixtures("no_punkt")
def test_the_shipped_starter_split_is_verifiable_without_punkt_data():
    task = load_task("starter", TaskOptions(offline=True))
    assert len(task.prompts) >= 60
    assert task.notes == ()
