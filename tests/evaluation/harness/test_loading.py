"""What is told before anything is generated, and rows of local files."""

import gzip
import json

import pytest

from misotune.errors import DataError, RunError, UsageError
from misotune.evaluation.harness import catalog
from misotune.evaluation.harness.loading import is_harness_task, load_harness_task
from misotune.evaluation.harness.options import HarnessOptions


def load(name, folder, **options):
    is_served = options.pop("is_served", False)
    return load_harness_task(name, HarnessOptions(include_path=folder, **options), is_served=is_served)


def contexts(task, limit=None):
    """The turns that each row's prompt is made of."""
    (found,) = task.tasks.values()
    found.set_fewshot_seed(1234)
    shots = found.get_config("num_fewshot") or 0
    made = []
    for _, row in found.doc_iterator(limit=limit):
        made.append((row, []))
        found.fewshot_context(
            row, shots, apply_chat_template=True, fewshot_as_multiturn=True,
            chat_template=lambda turns, add_generation_prompt, to=made[-1][1]: to.extend(turns) or "",
        )  # fmt: skip
    return made


def test_misotunes_own_names_stay_its_own():
    assert not is_harness_task("ifeval")
    assert not is_harness_task("drop")
    assert is_harness_task("gsm8k")


@pytest.fixture
def own_tasks_only(monkeypatch):
    """Reading all of lm-eval's task files takes ten seconds."""
    index = catalog._index
    monkeypatch.setattr(catalog, "_index", lambda folder, *, is_alone: index(folder, is_alone=True))


@pytest.mark.usefixtures("own_tasks_only")
def test_an_unknown_name_is_told_with_the_nearest_of_both(folder):
    with pytest.raises(UsageError, match=r"unknown task 'tiny_chioce'; did you mean 'tiny_choice'"):
        load("tiny_chioce", folder)
    with pytest.raises(UsageError, match=r"unknown task 'ifevl'; did you mean 'ifeval'"):
        load("ifevl", folder)


def test_a_folder_of_tasks_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"--include-path .*none: no such folder"):
        load("tiny_choice", tmp_path / "none")


def test_lm_evals_own_task_is_found_in_its_folder_alone(monkeypatch):
    manager = catalog.find_tasks("gsm8k")
    assert list(catalog.configs_of("gsm8k", manager)) == ["gsm8k"]
    assert len(manager.all_tasks) < 100
    assert len(catalog.configs_of("mmlu", catalog.find_tasks("mmlu"))) == 57


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (
            "huggingface_hub.HfApi",
            "dataset_info",
            r"example/questions cannot be had from the hub \(No reply\); .*--data",
        ),
        (
            "datasets",
            "load_dataset",
            r"cannot be loaded \(ConnectionError: No reply\).*rows of example/questions.*--data",
        ),
    ],
)
def test_a_hub_that_is_not_reached_is_told_with_the_cure(folder, monkeypatch, module, name, said):
    def unreachable(*args, **kwargs):
        raise ConnectionError("No reply\nmore")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(f"{module}.{name}", unreachable)
    with pytest.raises(RunError, match=said):
        load("tiny_generate", folder)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".json.gz"])
def test_rows_are_read_from_a_file_of_any_kind(folder, rows, tmp_path, ending):
    text = json.dumps(rows) if ".json" in ending and "jsonl" not in ending else "\n".join(map(json.dumps, rows))
    path = tmp_path / f"rows{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
    task = load("tiny_generate", folder, data=path)
    assert list(task.tasks["tiny_generate"].eval_docs) == rows
    assert task.source == str(path)


def test_examples_from_the_scored_file_are_never_the_question_itself(folder, rows, tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:3], rows[0]]))
    task = load("tiny_generate", folder, data=path)
    assert "never the question itself" in task.notes[0]
    for row, turns in contexts(task):
        asked = [turn["content"] for turn in turns if turn["role"] == "user"]
        assert len(asked) == 3
        assert asked[-1] == f"Q: {row['question']}"
        assert asked[-1] not in [text.strip() for text in asked[:-1]]


def test_examples_from_a_folder_are_of_their_own_split(folder, rows, tmp_path):
    for split, part in (("test", rows[:2]), ("tiny_generate_train", rows[2:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    task = load("tiny_generate", folder, data=tmp_path)
    assert task.notes == ()
    train = {f"Q: {row['question']}" for row in rows[2:]}
    for _, turns in contexts(task):
        assert {turn["content"].strip() for turn in turns[:-1] if turn["role"] == "user"} <= train


def test_a_split_that_a_folder_does_not_have_is_told(folder, rows, tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UsageError, match=r"needs its split 'train', in a file called train\.jsonl"):
        load("tiny_generate", folder, data=tmp_path)
    assert load("tiny_generate", folder, data=tmp_path, num_fewshot=0).notes == ()


def test_a_scored_row_among_the_tasks_own_examples_is_refused(folder, rows):
    path = folder / "generate.yaml"
    example = json.dumps(rows[1])
    path.write_text(path.read_text().replace("fewshot_split: train", f"fewshot_config: {{samples: [{example}]}}"))
    with pytest.raises(UsageError, match=r"row 2 is one of the examples"):
        load("tiny_generate", folder, data=folder / "rows.jsonl")
    load("tiny_generate", folder, data=folder / "rows.jsonl", num_fewshot=0)


def test_mbpps_published_file_is_cut_to_the_scored_split(shared_data):
    task = load("mbpp", None, data=shared_data / "code" / "mbpp.jsonl.gz", run_model_code=True)
    ids = [row["task_id"] for row in task.tasks["mbpp"].eval_docs]
    assert (ids[0], ids[-1], len(ids)) == (11, 510, 500)
    assert "task_id 11 to 510" in task.notes[0]


def test_rows_that_do_not_fit_are_told(folder, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1"}\n{broken\n')
    with pytest.raises(DataError, match=r"rows\.jsonl line 2"):
        load("tiny_generate", folder, data=path)
    path.write_text('{"other": "1"}\n')
    with pytest.raises(RunError, match=r"cannot use the rows of .*must have the columns of the task's own data"):
        load("tiny_generate", folder, data=path)
    path.write_text("")
    with pytest.raises(DataError, match=r"no rows"):
        load("tiny_generate", folder, data=path)
    with pytest.raises(UsageError, match=r"--data .*: no such file"):
        load("tiny_generate", folder, data=tmp_path / "none")
    with pytest.raises(UsageError, match=r"--data belongs to one task; 'tiny_group' is a group of 2"):
        load("tiny_group", folder, data=folder / "rows.jsonl")


def test_a_models_programs_run_only_with_the_users_word(folder):
    with pytest.raises(UsageError, match=r"'humaneval' runs programs that the model writes.*--run-model-code"):
        load("humaneval", None)
    path = folder / "generate.yaml"
    path.write_text(path.read_text() + "unsafe_code: true\n")
    with pytest.raises(UsageError, match=r"--run-model-code"):
        load("tiny_generate", folder, data=folder / "rows.jsonl")


def test_a_task_that_draws_is_refused(folder):
    path = folder / "generate.yaml"
    path.write_text(path.read_text().replace("do_sample: false", "do_sample: true, temperature: 0.8"))
    with pytest.raises(UsageError, match=r"draws its responses"):
        load("tiny_generate", folder, data=folder / "rows.jsonl")


def test_a_server_is_not_asked_to_go_on_with_a_response(folder):
    path = folder / "generate.yaml"
    path.write_text(path.read_text() + 'gen_prefix: "It is"\n')
    with pytest.raises(UsageError, match=r"begins the model's response itself"):
        load("tiny_generate", folder, data=folder / "rows.jsonl", is_served=True)
