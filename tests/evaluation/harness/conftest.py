"""Small tasks of lm-eval's kind, as a user's own folder of YAML files holds them."""

import json

import pytest

QUESTIONS = [
    {"question": f"What is {a} and {b}?", "answer": str(a + b), "choices": [str(a + b), "x", "yy"], "gold": a % 2}
    for a in range(5)
    for b in (2, 7)
]

GENERATE = """
task: tiny_generate
dataset_path: example/questions
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "Q: {{question}}"
doc_to_target: "{{answer}}"
description: "Add."
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: whole
    filter: [{function: take_first}]
  - name: number
    filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]
generation_kwargs: {until: ["Q:"], max_gen_toks: 12, do_sample: false}
num_fewshot: 2
metadata: {version: 1.0}
"""

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {validation: FOLDER/rows.jsonl}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "Q: {{question}}"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: brier_score, higher_is_better: false}
num_fewshot: 0
"""

ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {data_files: {validation: FOLDER/rows.jsonl}}
output_type: loglikelihood_rolling
validation_split: validation
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: word_perplexity
"""

GROUP = """
group: tiny_group
task: [tiny_choice, tiny_other]
aggregate_metric_list:
  - {metric: acc, weight_by_size: WEIGHT}
"""


@pytest.fixture
def rows():
    return QUESTIONS


@pytest.fixture
def folder(tmp_path, rows):
    """A folder of tasks, with their rows in `rows.jsonl`."""
    place = tmp_path / "own"
    place.mkdir()
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (place / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]), encoding="utf-8")
    other = CHOICE.replace("tiny_choice", "tiny_other").replace("rows.jsonl", "few.jsonl")
    for name, text in {
        "generate": GENERATE,
        "choice": CHOICE,
        "other": other + "tag: tiny_tag\n",
        "rolling": ROLLING,
        "group": GROUP.replace("WEIGHT", "true"),
        "unweighted": GROUP.replace("WEIGHT", "false").replace("tiny_group", "tiny_unweighted"),
    }.items():
        (place / f"{name}.yaml").write_text(text.replace("FOLDER", str(place)), encoding="utf-8")
    return place


@pytest.fixture(autouse=True)
def own_hub_cache(tmp_path, monkeypatch):
    """The package datasets writes what it reads into a cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="session")
def chat_model(tiny_model_dir):
    from misotune.evaluation.backends.chat_model import load_chat_model

    return load_chat_model(str(tiny_model_dir), dtype="float32")
