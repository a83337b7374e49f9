import json

import pytest

from misotune.errors import RunError, UsageError
from misotune.evaluation.evaluate import evaluate_model, evaluate_responses
from misotune.evaluation.tasks import load_task

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
    return load_task("ifeval", data=files / "data.jsonl", offline=True)


def test_responses_are_scored_strict_and_loose_per_prompt_instruction_and_type(files, task):
    scores = evaluate_responses(files / "responses.jsonl", task, out=files / "out")
    assert (scores.num_prompts, scores.num_instructions) == (2, 3)
    assert scores.figures.prompt_level_strict_acc == 1 / 2
    assert scores.figures.inst_level_strict_acc == 1 / 3
    assert scores.figures.prompt_level_loose_acc == 1 / 2
    assert scores.figures.inst_level_loose_acc == 2 / 3
    by_type = scores.constraint_types["startend:quotation"]
    assert (by_type.num_instructions, by_type.strict, by_type.loose) == (1, 0.0, 1.0)


def test_the_result_folder_holds_scores_and_one_line_a_prompt(files, task):
    scores = evaluate_responses(files / "responses.jsonl", task, out=files / "out" / "deep", notes=["a note"])
    content = json.loads((scores.folder / "scores.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(scores.to_json()))
    assert (content["format"], content["task"], content["notes"]) == (1, "ifeval", ["a note"])
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
    task = load_task("ifeval", data=folder / "input_data.jsonl", offline=True)
    responses = folder / "input_response_data_gpt4_20231107_145030.jsonl"
    scores = evaluate_responses(responses, task, out=tmp_path / "gpt4")
    figures = scores.figures
    assert [round(100 * share, 2) for share in (
        figures.prompt_level_strict_acc, figures.inst_level_strict_acc,
        figures.prompt_level_loose_acc, figures.inst_level_loose_acc,
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
