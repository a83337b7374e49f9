import json

import pytest
from transformers import AutoModelForCausalLM

from misotune.analysis.dilution.study import DilutionSettings, study_dilution
from misotune.errors import UnsupportedModelError, UsageError

SMALL = {"max_inputs": 2, "limit": 1, "max_length": 700}


@pytest.fixture
def model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()


def test_the_result_file_says_what_was_measured_on_what(model, tokenizer, tmp_path):
    study = study_dilution("tiny", model, tokenizer, tmp_path / "d", DilutionSettings(**SMALL))
    content = json.loads((study.folder / "dilution.json").read_text())
    assert content == study.result
    assert study.title == "tiny, 1 row of the starter set, n of a row's inputs"
    assert content["settings"] | {"device": "cpu", "dtype": "float32", "max_length": 700} == content["settings"]
    assert content["versions"].keys() == {"python", "misotune", "torch", "transformers"}
    (row,) = content["data"]["rows"]
    assert row["id"] == study.rows.items[0].sample.id
    assert len(row["input_tokens"]) == 16
    assert max(row["input_tokens"]) + row["output_tokens"] <= 700


def test_the_title_says_where_the_inputs_came_from(model, tokenizer, tmp_path):
    inputs = [{"role": "full", "messages": [{"role": "user", "content": text}]} for text in "ab"]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "r", "inputs": inputs, "output": "An answer."}) + "\n")
    for options, expected in (
        ({"max_inputs": 2}, "n of a row's inputs"),
        ({"max_inputs": 3}, "n of a row's inputs, begun again after 2 or more"),
        ({"is_repeated": True}, "one input n times"),
    ):
        settings = DilutionSettings(**SMALL | {"data": path} | options)
        study = study_dilution("tiny", model, tokenizer, tmp_path / "d", settings)
        assert study.title == f"tiny, 1 row of rows.jsonl, {expected}"


def test_pairs_are_no_longer_than_the_models_context(model, tokenizer, tmp_path):
    model.config.max_position_embeddings = 600
    study = study_dilution("tiny", model, tokenizer, tmp_path / "d", DilutionSettings(**SMALL))
    assert study.result["settings"]["max_length"] == 600
    assert study.rows.items[0].encoded.longest_pair <= 600


def test_nothing_is_measured_where_the_result_could_not_be_kept_or_would_not_be_exact(model, tokenizer, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files that are no result"):
        study_dilution("tiny", model, tokenizer, tmp_path, DilutionSettings(**SMALL))
    model.config.attention_dropout = 0.1
    with pytest.raises(UnsupportedModelError, match=r"attention_dropout=0\.1: set it to 0"):
        study_dilution("tiny", model, tokenizer, tmp_path / "d", DilutionSettings(**SMALL))
