import json
import os

import pytest
import typer
from typer.testing import CliRunner

from misotune.cli.eval import evaluate
from misotune.errors import RunError, UsageError

ROW = {"key": 1, "prompt": "Hello", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}

app = typer.Typer()
app.command("eval")(evaluate)
app.command("other")(lambda: None)


@pytest.fixture
def misotune_eval(tmp_path, monkeypatch):
    """Runs `misotune eval` beside data.jsonl and responses.jsonl; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "data.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "key": 2, "prompt": "x"}) + "\n")
    (tmp_path / "responses.jsonl").write_text(
        '{"key": 1, "response": "Rain."}\n{"key": 2, "response": "Rain, rain."}\n'
    )

    def run(*arguments):
        result = CliRunner().invoke(app, ["eval", *map(str, arguments)], catch_exceptions=False)
        return result

    return run


def make_run(model_dir, root, name):
    run = root / "runs" / name
    run.mkdir(parents=True)
    (run / "final").symlink_to(model_dir, target_is_directory=True)
    return run


def test_responses_are_scored_into_a_table_and_a_folder(misotune_eval, tmp_path):
    result = misotune_eval("ifeval", "--data", "data.jsonl", "--responses", "responses.jsonl")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[2].split() == ["ifeval", "2", "50.00", "50.00", "50.00", "50.00"]
    assert "ifeval: scores/responses/ifeval/scores.json, scores/responses/ifeval/samples.jsonl" in result.stdout
    assert (tmp_path / "scores" / "responses" / "ifeval" / "samples.jsonl").is_file()


def test_json_is_all_that_stands_on_standard_output(misotune_eval):
    result = misotune_eval("ifeval", "--data", "data.jsonl", "--responses", "responses.jsonl", "--json", "--out", "o")
    content = json.loads(result.stdout)
    assert content["results"][0]["figures"]["prompt_level_strict_acc"] == 0.5
    assert content["results"][0]["folder"] == "o"


def test_flatten_says_that_the_flattened_set_was_not_scored(misotune_eval):
    result = misotune_eval("ifeval", "--flatten", "--data", "data.jsonl", "--responses", "responses.jsonl")
    assert result.exit_code == 0
    assert "note: IFEval-Flatten is not part of this version of misotune: it was not scored" in result.stdout


def test_without_a_model_the_newest_finished_run_is_taken_and_named(misotune_eval, tiny_model_dir, tmp_path):
    run = make_run(tiny_model_dir, tmp_path, "first")
    result = misotune_eval("ifeval", "--data", "data.jsonl", "--limit", 1, "--max-new-tokens", 3, "--batch-size", 1)
    assert result.exit_code == 0, result.output
    assert "evaluating the newest finished run: runs/first" in result.stderr
    assert "ifeval: 1 of 1 prompts" in result.stderr
    assert "next: misotune export runs/first" in result.stdout
    scores = json.loads((run / "scores" / "ifeval" / "scores.json").read_text())
    assert (scores["num_prompts"], scores["settings"]["limit"]) == (1, 1)


def test_help_names_every_option(misotune_eval):
    result = misotune_eval("--help")
    for option in (
        "--model",
        "--data",
        "--responses",
        "--limit",
        "--out",
        "--flatten",
        "--json",
        "--offline",
    ):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ifevl"], "unknown task 'ifevl'; did you mean 'ifeval'"),
        (["ifeval"], "no finished run in runs/"),
        (["ifeval", "ifeval"], "a task is named twice"),
        (["starter", "--flatten"], "--flatten belongs to the task ifeval"),
        (["ifeval", "starter", "--data", "data.jsonl"], "--data belongs to one task"),
        (["ifeval", "--data", "nowhere.jsonl"], "--data nowhere.jsonl: no such file"),
        (["ifeval", "--responses", "responses.jsonl", "--model", "m"], "leave out --model"),
        (["ifeval", "--responses", "responses.jsonl", "--batch-size", "2"], "leave out --batch-size"),
        (["ifeval", "--data", "data.jsonl", "--model", "./nowhere"], "./nowhere: no such folder"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_starts(misotune_eval, arguments, message):
    with pytest.raises(UsageError, match=message):
        misotune_eval(*arguments)
    assert not os.path.exists("scores")


def test_a_bad_row_stops_the_command_with_its_line(misotune_eval, tmp_path):
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write('{"key": 3}\n')
    with pytest.raises(RunError, match=r"data\.jsonl line 3: no field 'prompt'"):
        misotune_eval("ifeval", "--data", "data.jsonl", "--responses", "responses.jsonl")
