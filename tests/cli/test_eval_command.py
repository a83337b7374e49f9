import json
import os
from contextlib import contextmanager

import pytest
import typer
from tests.chat_server import ChatServer, Fault, question_of
from typer.testing import CliRunner

from misotune.cli.eval import evaluate
from misotune.errors import DataError, RunError, UsageError

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


def test_flatten_scores_ifeval_and_every_constraint_of_it_alone(misotune_eval, tiny_model_dir, shared_data, punkt):
    data = shared_data / "ifeval" / "input_data.jsonl"
    result = misotune_eval(
        "ifeval", "--flatten", "--data", data, "--model", tiny_model_dir, "--limit", 2, "--max-new-tokens", 2,
        "--out", "both", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    both = json.loads(result.stdout)["results"]
    assert [(scores["task"], scores["num_prompts"]) for scores in both] == [("ifeval", 2), ("ifeval-flatten", 4)]
    assert {scores["counts"]["instructions"] for scores in both} == {4}


def test_flatten_refuses_prompts_that_are_not_ifevals(misotune_eval):
    with pytest.raises(DataError, match=r"data.jsonl line 1: IFEval has no key 1;"):
        misotune_eval("ifeval", "--flatten", "--data", "data.jsonl", "--responses", "responses.jsonl")


def test_a_needle_is_asked_for_and_drawn(misotune_eval, tiny_model_dir, tmp_path):
    (tmp_path / "essays.txt").write_text("Plain words stand here. " * 200)
    result = misotune_eval(
        "needle", "--data", "essays.txt", "--model", tiny_model_dir, "--needle-lengths", 2, "--needle-depths", 2,
        "--needle-max-length", 600, "--max-new-tokens", 2, "--out", "o",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "needle by depth" in result.stdout
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "scores.json", "samples.jsonl", "needle.svg", "needle.png",
    }  # fmt: skip


def test_a_reading_task_is_scored_out_of_responses(misotune_eval, tmp_path):
    rows = [{"id": "a", "context": "Rain fell.", "question": "What fell?", "answer": "rain"}]
    (tmp_path / "drop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "said.jsonl").write_text('{"key": "a", "response": "The rain."}\n')
    result = misotune_eval("drop", "--data", "drop.jsonl", "--responses", "said.jsonl", "--json")
    assert json.loads(result.stdout)["results"][0]["figures"] == {"contains": 1.0, "contains_words": 1.0}


def test_a_result_is_compared_with_an_earlier_one(misotune_eval, tmp_path):
    (tmp_path / "worse.jsonl").write_text('{"key": 1, "response": "a, b"}\n{"key": 2, "response": "a, b"}\n')
    misotune_eval("ifeval", "--data", "data.jsonl", "--responses", "worse.jsonl", "--out", "worse")
    result = misotune_eval(
        "ifeval", "--data", "data.jsonl", "--responses", "responses.jsonl", "--out", "new", "--compare", "worse"
    )
    assert result.exit_code == 0, result.output
    assert "within the noise" in result.stdout
    assert "+50.0" in result.stdout


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
        "--fresh",
        "--endpoint",
        "--api-key-env",
        "--concurrency",
    ):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ifevl"], "unknown task 'ifevl'; did you mean 'ifeval'"),
        (["ifeval"], "no finished run in runs/"),
        (["ifeval", "ifeval"], "a task is named twice"),
        (["starter", "--flatten"], "--flatten belongs to the task ifeval"),
        (["starter", "--judge-model", "m"], "only the task complexbench has a judge; leave out --judge-model"),
        (["complexbench", "--model", "m"], "needs --data: data_final.json of a clone"),
        (["complexbench", "--model", "m", "--data", "data.jsonl"], "needs a judge: --judge-endpoint URL and"),
        (["needle", "--responses", "responses.jsonl", "--data", "data.jsonl"], "counts lengths in the model's own tok"),
        (["ifeval", "--language", "fr"], "--language fr: ComplexBench has zh and en"),
        (["ifeval", "starter", "--data", "data.jsonl"], "--data belongs to one task"),
        (["ifeval", "--data", "nowhere.jsonl"], "--data nowhere.jsonl: no such file"),
        (["ifeval", "--responses", "responses.jsonl", "--model", "m"], "leave out --model"),
        (["ifeval", "--responses", "responses.jsonl", "--batch-size", "2"], "leave out --batch-size"),
        (["ifeval", "--data", "data.jsonl", "--model", "./nowhere"], "./nowhere: no such folder"),
        (["ifeval", "--responses", "responses.jsonl", "--fresh"], "leave out --fresh"),
        (["ifeval", "--responses", "responses.jsonl", "--endpoint", "http://h"], "leave out --endpoint"),
        (["ifeval", "--endpoint", "http://h"], "--endpoint URL needs --model NAME"),
        (["ifeval", "--endpoint", "h:1", "--model", "m"], "'h:1' is no http address"),
        (["ifeval", "--endpoint", "http://h", "--model", "m", "--dtype", "float32"], "server .* leave out --dtype"),
        (["ifeval", "--endpoint", "http://h", "--model", "m", "--batch-size", "2"], "leave out --batch-size"),
        (["ifeval", "--endpoint", "http://h", "--model", "m", "--api-key-env", "NO_SUCH"], "NO_SUCH holds no API key"),
        (["ifeval", "--model", "m", "--concurrency", "2"], "only --endpoint URL .* leave out --concurrency"),
        (["ifeval", "--model", "m", "--api-key-env", "KEY"], "only --endpoint URL .* leave out --api-key-env"),
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


def test_a_model_on_a_server_is_evaluated_and_a_server_that_died_costs_nothing_that_was_there(misotune_eval, tmp_path):
    def dying(request):
        if question_of(request) == "x":
            raise Fault(429)
        return "Rain."

    arguments = ["ifeval", "--data", "data.jsonl", "--model", "small", "--concurrency", 1, "--endpoint"]
    with patch_retries(0), ChatServer(dying) as server, pytest.raises(RunError, match="1 answers are kept"):
        misotune_eval(*arguments, server.url)
    with ChatServer(lambda request: "Rain.") as server:
        result = misotune_eval(*arguments, server.url)
    assert "ifeval: 1 of 2 responses kept from the interrupted evaluation" in result.stderr
    assert (
        f"s at {server.url}/v1, 1 requests at a time; 0 responses cut at 1280 tokens; 1 responses kept from the"
        in result.stdout
    )
    assert len(server.requests) == 1
    scores = json.loads((tmp_path / "scores" / "small" / "ifeval" / "scores.json").read_text())
    assert (scores["settings"]["backend"], scores["generation"]["num_kept"]) == ("endpoint", 1)
    assert os.listdir(tmp_path / "scores" / "small") == ["ifeval"]


@contextmanager
def patch_retries(number):
    from misotune.evaluation.backends.endpoint import EndpointBackend

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EndpointBackend.__init__.__kwdefaults__, "retries", number)
        yield


def interrupt_at(number):
    """A progress callback that presses Ctrl-C."""

    @contextmanager
    def progress(task, num_prompts, console):
        def report(now):
            if now.num_done >= number:
                raise KeyboardInterrupt

        yield report

    return progress


def test_ctrl_c_keeps_the_responses_of_all_tasks_and_fresh_forgets_them(misotune_eval, tiny_model_dir, monkeypatch):
    arguments = ["ifeval", "--data", "data.jsonl", "--model", tiny_model_dir, "--max-new-tokens", 3, "--batch-size", 1]
    for expected, extra in ((1, []), (None, ["--fresh"])):
        with monkeypatch.context() as patch:
            patch.setattr("misotune.cli.eval_run.generation_progress", interrupt_at(1))
            # click turns Ctrl-C into an exit of its own
            interrupted = misotune_eval(*arguments)
        assert interrupted.exit_code != 0
        assert "ifeval: responses so far are kept; the same command goes on from there" in interrupted.stderr
        result = misotune_eval(*arguments, *extra)
        assert ("1 of 2 responses kept" in result.stderr) == (expected == 1)
        assert ("1 responses kept from the interrupted" in result.stdout) == (expected == 1)


def test_a_task_that_was_whole_before_the_interruption_is_not_generated_again(
    misotune_eval, tiny_model_dir, monkeypatch
):
    arguments = ["starter", "ifeval", "--limit", 2, "--model", tiny_model_dir, "--max-new-tokens", 3]
    rows = [("a", ROW), ("b", {**ROW, "key": 2, "prompt": "x"})]
    monkeypatch.setattr("misotune.evaluation.tasks._ifeval_rows", lambda name, options: ("hub", rows))

    def progress(task, num_prompts, console):
        return interrupt_at(1 if task == "ifeval" else 9)(task, num_prompts, console)

    with monkeypatch.context() as patch:
        patch.setattr("misotune.cli.eval_run.generation_progress", progress)
        misotune_eval(*arguments)
    result = misotune_eval(*arguments)
    assert "starter: 2 of 2 responses kept" in result.stderr
    assert "ifeval: 1 of 2 responses kept" in result.stderr or "ifeval: 2 of 2 responses kept" in result.stderr
    assert "kept" not in misotune_eval(*arguments).stderr


def test_a_steered_model_is_scored_apart_and_says_so(misotune_eval, tiny_model_dir, tmp_path):
    (tmp_path / "essays.txt").write_text("Plain words stand here. " * 200)
    needle = (
        "needle", "--data", "essays.txt", "--model", tiny_model_dir, "--needle-lengths", 2, "--needle-depths", 2,
        "--needle-max-length", 300, "--max-new-tokens", 2,
    )  # fmt: skip
    assert misotune_eval(*needle).exit_code == 0
    result = misotune_eval(*needle, "--steer", 0.5, "--steer-layers", 2)
    assert result.exit_code == 0, result.output
    root = tmp_path / "scores" / tiny_model_dir.name
    plain, steered = root / "needle", root / "steer-0.5-layers-2" / "needle"
    settings = json.loads((steered / "scores.json").read_text())["settings"]
    assert (settings["steer"], settings["steer_layers"]) == (0.5, "2")
    assert "steered by 0.5, layers 2" in result.stdout
    assert "steered by 0.5, layers 2" in next(steered.glob("*.svg")).read_text()
    assert "steered" not in next(plain.glob("*.svg")).read_text()

    from misotune.evaluation.comparison.compare import compare_results

    told = json.dumps(compare_results([plain, steered]).to_json())
    assert "steer none and 0.5, steer_layers none and 2" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ifeval", "--steer", "0.9", "--responses", "responses.jsonl"], "made elsewhere; leave out --steer"),
        (["ifeval", "--steer", "0.9", "--endpoint", "http://127.0.0.1:1"], "cannot be steered from here; leave out"),
        (["gsm8k", "--steer", "0.9"], "'gsm8k' is lm-eval's, and only misotune's own tasks can be steered"),
        (["ifeval", "--steer", "0.9", "--base"], "--base compares models as they are; leave out --steer"),
        (["ifeval", "--steer", "95"], "--steer 95: a number above 0 and at most 1"),
        (["ifeval", "--steer", "0.9", "--steer-heads", "x"], "--steer-heads x: numbers from 1 to 9,999"),
        (["ifeval", "--steer-layers", "1"], "--steer-layers belongs to --steer ALPHA"),
    ],
)
def test_steering_where_it_cannot_be_is_refused(misotune_eval, arguments, message):
    with pytest.raises(UsageError, match=message):
        misotune_eval(*arguments)
