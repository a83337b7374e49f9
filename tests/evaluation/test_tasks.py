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


@pytest.fixture
def hub(monkeypatch):
    """Puts a function in the place of `datasets.load_dataset`."""
    import datasets
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return lambda load: monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize("name", ["ifeval", "ifeval-flatten"])
def test_the_hubs_rows_are_read_without_their_nulls(hub, ifeval_prompts, name):
    import datasets

    first = ifeval_prompts[0]
    nulls = {"num_words": None, "relation": None, "num_highlights": None, "prompt_to_repeat": None}
    rows = datasets.Dataset.from_list(
        [
            {
                "key": first.key,
                "prompt": first.prompt,
                "instruction_id_list": list(first.instruction_id_list),
                "kwargs": [{**nulls, **entry} for entry in first.kwargs],
            }
        ]
    )
    asked = []
    hub(lambda name, configuration, *, split, revision: asked.append((name, split)) or rows)
    task = load_task(name, TaskOptions(offline=True))
    assert [dict(entry) for prompt in task.prompts for entry in prompt.kwargs] == [dict(e) for e in first.kwargs]
    assert len(task.prompts) == {"ifeval": 1, "ifeval-flatten": len(first.kwargs)}[name]
    assert task.source == "google/IFEval"
    assert task.prompts[0].where.startswith("google/IFEval: row 1")
    assert asked == [("google/IFEval", "train")]


def test_a_hub_out_of_reach_names_the_way_out(hub):
    def fail(*_, **__):
        raise ConnectionError("Couldn't reach 'google/IFEval' on the Hub\nmore lines")

    hub(fail)
    way_out = r"\(Couldn't reach 'google/IFEval' on the Hub\); .*: misotune eval ifeval --data input_data.jsonl"
    with pytest.raises(RunError, match=way_out):
        load_task("ifeval")


@pytest.mark.parametrize("name", ["complexbench", "needle"])
def test_a_task_that_has_no_prompts_without_data_says_what_data_it_needs(name):
    with pytest.raises(UsageError, match=rf"task '{name}' needs --data: (data_final.json|the text to hide it in)"):
        load_task(name)


def test_a_needle_for_a_model_elsewhere_asks_for_its_tokenizer(tmp_path):
    (tmp_path / "essays.txt").write_text("Rain fell. " * 100)
    with pytest.raises(UsageError, match=r"with --endpoint or --responses name the tokenizer, .* --tokenizer NAME"):
        load_task("needle", TaskOptions(data=tmp_path / "essays.txt"))


@pytest.mark.usefixtures("punkt")
@pytest.mark.parametrize("limit", [None, 2])
def test_a_limit_takes_prompts_before_they_are_flattened(shared_data, limit):
    path = shared_data / "ifeval" / "input_data.jsonl"
    every = load_task("ifeval", TaskOptions(data=path, offline=True)).prompts
    task = load_task("ifeval-flatten", TaskOptions(data=path, limit=limit, offline=True))
    taken = every[:limit]
    assert [p.key for p in task.prompts] == [f"{p.key}-{n}" for p in taken for n in range(len(p.kwargs))]
    assert len(task.all_prompts) == sum(len(p.kwargs) for p in every) == 834


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
