"""ComplexBench's published responses, as they are in its repository."""

import gzip
import json

import pytest

from misotune.chat.server import Server
from misotune.evaluation.complexbench.judge import JudgeOptions
from misotune.evaluation.complexbench.scoring import load_complexbench
from misotune.evaluation.responses import read_responses

pytest.importorskip("openai")


@pytest.mark.parametrize("model", ["gpt4_1106", "qwen1.5_7b"])
def test_the_published_response_files_are_read_as_they_are(model, shared_data, write_data, make_row, tmp_path):
    path = shared_data / "complexbench" / f"{model}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        published = [json.loads(line) for line in file]
    # The data file is not among the samples; its instructions are.
    data = write_data([make_row(row["main_id"], 1, instruction=row["instruction"]) for row in published])
    judge = JudgeOptions(Server("http://127.0.0.1:1", "small"), tmp_path / "answers.sqlite")
    task = load_complexbench(data, judge=judge)
    texts, notes = read_responses(path, task.prompts, task.all_prompts, task.response_fields)
    assert (texts, notes) == ([row["generated"] for row in published], [])
    assert len(texts) == 1150
    task = load_complexbench(data, judge=judge, limit=3)
    texts, notes = read_responses(path, task.prompts, task.all_prompts, task.response_fields)
    assert (texts, notes) == ([row["generated"] for row in published[:3]], [])
    # Responses to the Chinese instructions answer the English ones by their main_id only, which is said.
    task = load_complexbench(data, judge=judge, language="en")
    texts, (note,) = read_responses(path, task.prompts, task.all_prompts, task.response_fields)
    assert texts == [row["generated"] for row in published]
    assert note.startswith("1150 of 1150 responses have the key but not the wording of their prompt")
