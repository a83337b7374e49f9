import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from misotune.errors import RunError, UsageError
from misotune.evaluation.evaluate import evaluate_model, evaluate_responses
from misotune.evaluation.tasks import TaskOptions, load_task

ROWS = [
    {"key": 1, "prompt": "A", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "B",
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{}, {}],
    },
]
RESPONSES = [{"key": 1, "response": "Rain falls."}, {"key": 2, "response": '*"Rain, falls"*'}]


@pytest.fixture
def files(tmp_path):
    for name, rows in (("data.jsonl", ROWS), ("responses.jsonl", RESPONSES)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def task(files):
    return load_task("ifeval", TaskOptions(data=files / "data.jsonl", offline=True))


def test_responses_are_scored_strict_and_loose_per_prompt_instruction_and_type(files, task):
    scores = evaluate_responses(files / "responses.jsonl", task, out=files / "out")
    assert (scores.num_prompts, scores.counts["instructions"]) == (2, 3)
    assert scores.figures["prompt_level_strict_acc"] == 1 / 2
    assert scores.figures["inst_level_strict_acc"] == 1 / 3
    assert scores.figures["prompt_level_loose_acc"] == 1 / 2
    assert scores.figures["inst_level_loose_acc"] == 2 / 3
    by_type = scores.groups["constraint type"]["startend:quotation"]
    assert by_type == {"number": 1, "strict": 0.0, "loose": 1.0}


def test_the_result_folder_holds_scores_and_one_line_a_prompt(files, task):
    scores = evaluate_responses(files / "responses.jsonl", task, out=files / "out" / "deep", notes=["a note"])
    content = json.loads((scores.folder / "scores.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(scores.to_json()))
    assert (content["format"], content["task"], content["notes"]) == (2, "ifeval", ["a note"])
    lines = (scores.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {
        "key": 2,
        "prompt": "B",
        "response": '*"Rain, falls"*',
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "strict": [False, False],
        "loose": [False, True],
    }
    assert [path.name for path in (files / "out").iterdir()] == ["deep"]


def test_the_samples_of_a_result_are_responses_again(files, task):
    first = evaluate_responses(files / "responses.jsonl", task, out=files / "one")
    again = evaluate_responses(first.folder / "samples.jsonl", task, out=files / "two")
    assert again.figures == first.figures


def test_an_older_result_is_replaced_and_other_files_are_not(files, task):
    for _ in range(2):
        evaluate_responses(files / "responses.jsonl", task, out=files / "out")
    with pytest.raises(UsageError, match="holds files that are no result of eval"):
        evaluate_responses(files / "responses.jsonl", task, out=files)
    with pytest.raises(UsageError, match=r"data\.jsonl: is a file; name a folder with --out"):
        evaluate_responses(files / "responses.jsonl", task, out=files / "data.jsonl")


def test_a_folder_that_cannot_be_written_is_named(files, task):
    with pytest.raises(RunError, match="the result cannot be written: Not a directory"):
        evaluate_responses(files / "responses.jsonl", task, out=files / "data.jsonl" / "out")


def test_gpt4_scores_as_published_for_these_verifiers(shared_data, punkt, tmp_path):
    folder = shared_data / "ifeval"
    task = load_task("ifeval", TaskOptions(data=folder / "input_data.jsonl", offline=True))
    responses = folder / "input_response_data_gpt4_20231107_145030.jsonl"
    scores = evaluate_responses(responses, task, out=tmp_path / "gpt4")
    figures = scores.figures
    assert [round(100 * share, 2) for share in (
        figures["prompt_level_strict_acc"], figures["inst_level_strict_acc"],
        figures["prompt_level_loose_acc"], figures["inst_level_loose_acc"],
    )] == [77.08, 83.69, 79.67, 85.61]  # fmt: skip
    assert any("key 2785; paired by line order" in note for note in scores.notes)


def test_a_model_is_scored_into_the_folder_of_its_run(tiny_model_dir, task, tmp_path):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "final").symlink_to(tiny_model_dir, target_is_directory=True)
    scores = evaluate_model(run, task, max_new_tokens=4, batch_size=2)
    assert scores.folder == run / "scores" / "ifeval"
    assert scores.settings["max_new_tokens"] == 4
    assert scores.generation["num_new_tokens"] > 0
    assert scores.versions["lm-eval"].startswith("0.4")
    assert len((scores.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_the_settings_name_the_backend_and_nothing_is_left_beside_a_whole_result(tiny_model_dir, task, tmp_path):
    scores = evaluate_model(str(tiny_model_dir), task, out=tmp_path / "out" / "r", max_new_tokens=4)
    assert (scores.settings["backend"], scores.settings["decoding"]) == ("hf", "greedy")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["r"]


def test_a_model_on_a_server_is_scored_by_the_name_it_has_there(task, tmp_path):
    from tests.chat_server import ChatServer

    from misotune.chat.server import Server
    from misotune.evaluation.backends.endpoint import EndpointBackend

    with ChatServer(lambda request: "Rain falls.", models=("/models/small",)) as server:
        backend = EndpointBackend(Server(server.url, "/models/small"))
        scores = evaluate_model("/models/small", task, out=tmp_path / "r", backend=backend)
    assert scores.model == "/models/small"
    assert scores.settings["endpoint"] == f"{server.url}/v1"
    assert scores.figures["inst_level_strict_acc"] == 2 / 3
    assert (scores.generation["num_new_tokens"], scores.generation["num_cut"]) == (None, 0)


EVALUATE = """
import sys, time
from pathlib import Path
from misotune.evaluation.evaluate import evaluate_model
from misotune.evaluation.tasks import TaskOptions, load_task

model, data, out, pause = sys.argv[1:]

def report(now):
    if now.num_new_tokens == 0:
        print("kept", now.num_kept, flush=True)
    if now.num_done >= 4:
        print("done", now.num_done, flush=True)
        time.sleep(float(pause))

evaluate_model(model, load_task("ifeval", TaskOptions(data=Path(data), offline=True)), out=Path(out), max_new_tokens=6,
               batch_size=2, on_progress=report)
"""


def start_evaluation(*arguments):
    command = [sys.executable, "-c", EVALUATE, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_an_evaluation_that_is_killed_goes_on_where_it_was_and_ends_as_if_it_had_not_been(tiny_model_dir, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{**ROWS[0], "key": key, "prompt": f"{'A long question. ' * (key % 4)}{key}?"} for key in range(10)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole = evaluate_model(
        str(tiny_model_dir),
        load_task("ifeval", TaskOptions(data=data, offline=True)),
        out=tmp_path / "whole",
        max_new_tokens=6,
    )
    with start_evaluation(tiny_model_dir, data, tmp_path / "killed", 60) as process:
        next(line for line in process.stdout if line.startswith("done"))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    with start_evaluation(tiny_model_dir, data, tmp_path / "killed", 0) as process:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
    assert output.splitlines()[0] == "kept 4"
    assert (tmp_path / "killed" / "samples.jsonl").read_bytes() == (whole.folder / "samples.jsonl").read_bytes()
    resumed = json.loads((tmp_path / "killed" / "scores.json").read_text(encoding="utf-8"))
    assert resumed["figures"] == whole.figures
    assert {name: resumed["generation"][name] for name in ("num_new_tokens", "num_cut", "num_kept")} == {
        "num_new_tokens": whole.generation["num_new_tokens"],
        "num_cut": whole.generation["num_cut"],
        "num_kept": 4,
    }
    assert not list(tmp_path.glob(".killed*"))


def test_responses_are_kept_until_they_are_scored(tiny_model_dir, task, tmp_path):
    """A judge that fails costs no response."""

    class Failing:
        def score(self, prompts, responses):
            raise RunError("the judge went away")

    failing = dataclasses.replace(task, scoring=Failing())
    with pytest.raises(RunError, match="the judge went away"):
        evaluate_model(str(tiny_model_dir), failing, out=tmp_path / "r", max_new_tokens=4)
    assert evaluate_model(str(tiny_model_dir), task, out=tmp_path / "r", max_new_tokens=4).generation["num_kept"] == 2
    assert evaluate_model(str(tiny_model_dir), task, out=tmp_path / "r", max_new_tokens=4).generation["num_kept"] == 0
