"""Tasks of lm-eval through `evaluate_harness`: figures, rows, resuming, and what is refused."""

import json

import pytest
from tests.chat_server import ChatServer, question_of

from misotune.chat.server import Server
from misotune.errors import MisotuneError, RunError, UsageError
from misotune.evaluation.backends.endpoint import EndpointBackend
from misotune.evaluation.backends.response_cache import cache_path
from misotune.evaluation.comparison.compare import compare_results
from misotune.evaluation.harness.evaluate import evaluate_harness
from misotune.evaluation.harness.options import HarnessOptions
from misotune.evaluation.models import ModelSource

SOURCE = ModelSource("tiny", "tiny")


@pytest.fixture
def run(folder, tmp_path, chat_model):
    """Evaluates a task of the folder with the tiny model."""

    def evaluate(task, *, name="out", model=chat_model, server=None, on_progress=None, **options):
        options = HarnessOptions(include_path=folder, **{"batch_size": 4, **options})
        model = None if server is not None else model
        return evaluate_harness(
            task, SOURCE, options, out=tmp_path / name, chat_model=model, server=server, on_progress=on_progress
        )

    return evaluate


def samples_of(scores):
    return [json.loads(line) for line in (scores.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def simple_evaluate(chat_model, folder, task, **options):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from misotune.evaluation.harness.quiet import quiet

    with quiet():
        return lm_eval.simple_evaluate(
            HFLM(pretrained=chat_model.model, tokenizer=chat_model.tokenizer, batch_size=1),
            tasks=[task],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
            **options,
        )


def test_choices_score_as_in_lm_evals_own_run(run, folder, chat_model):
    scores = run("tiny_choice")
    theirs = simple_evaluate(chat_model, folder, "tiny_choice")
    assert scores.figures == {name: theirs["results"]["tiny_choice"][f"{name},none"] for name in ("acc", "acc_norm")}
    assert 0 < scores.figures["acc"] < 1
    ours = samples_of(scores)
    for row, sample in zip(ours, theirs["samples"]["tiny_choice"], strict=True):
        values = [choice["log_probability"] for choice in row["choices"]]
        # Theirs are batches of one row, which other kernels add up.
        assert values == pytest.approx([float(tries[0][0]) for tries in sample["resps"]], abs=1e-4)
        assert row["scores"] == {"acc": sample["acc"], "acc_norm": sample["acc_norm"]}
    assert any("brier_score" in note for note in scores.notes)


def test_a_result_is_a_folder_that_compare_reads(run, tmp_path):
    first, again = run("tiny_choice", name="one"), run("tiny_choice", name="two")
    assert sorted(path.name for path in first.folder.iterdir()) == ["lm_eval.json", "samples.jsonl", "scores.json"]
    assert json.loads((first.folder / "scores.json").read_text()) == json.loads(json.dumps(again.to_json())) | {
        name: json.loads(json.dumps(first.to_json()))[name] for name in ("date", "generation")
    }
    whole = json.loads((first.folder / "lm_eval.json").read_text())
    assert whole["results"]["tiny_choice"]["acc,none"] == first.figures["acc"]
    assert "brier_score,none" in whole["results"]["tiny_choice"]
    assert not cache_path(first.folder).exists()
    compare_results([first.folder, again.folder])


@pytest.fixture
def local(folder):
    """The rows as the splits of a task whose data is on the hub."""
    place = folder / "splits"
    place.mkdir()
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (place / "test.jsonl").write_text("".join(lines[:4]))
    (place / "train.jsonl").write_text("".join(lines[4:]))
    return place


def test_texts_score_as_in_lm_evals_own_run(run, folder, local, chat_model):
    scores = run("tiny_generate", data=local, name="mine", batch_size=1)
    path = folder / "generate.yaml"
    files = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {local}/test.jsonl, train: {local}/train.jsonl}}}}"
    )
    path.write_text(path.read_text().replace("dataset_path: example/questions", files))
    theirs = simple_evaluate(chat_model, folder, "tiny_generate")
    expected = theirs["results"]["tiny_generate"]
    assert scores.figures == {f"exact_match ({kind})": expected[f"exact_match,{kind}"] for kind in ("whole", "number")}
    responses = [sample["resps"][0][0] for sample in theirs["samples"]["tiny_generate"] if sample["filter"] == "whole"]
    assert [row["response"] for row in samples_of(scores)] == responses
    assert (scores.num_prompts, scores.settings["num_fewshot"], scores.settings["max_new_tokens"]) == (4, 2, 12)


def test_groups_have_lm_evals_figure_and_each_subtask(run, folder, chat_model):
    for group in ("tiny_group", "tiny_unweighted"):
        scores = run(group, name=group)
        theirs = simple_evaluate(chat_model, folder, group)["results"]
        assert scores.figures["acc"] == theirs[group]["acc,none"]
        parts = scores.groups["subtask"]
        assert {name: part["acc"] for name, part in parts.items()} == {
            name: theirs[name]["acc,none"] for name in ("tiny_choice", "tiny_other")
        }
        assert [part["number"] for part in parts.values()] == [10, 4]
    rows = samples_of(scores)
    assert {row["group"] for row in rows} == {"tiny_choice", "tiny_other"}
    assert len({row["key"] for row in rows}) == len(rows) == 14


def test_a_tag_has_the_mean_over_all_prompts(run):
    scores = run("tiny_tag")
    assert list(scores.groups["subtask"]) == ["tiny_other"]
    assert scores.figures["acc"] == scores.groups["subtask"]["tiny_other"]["acc"]
    assert any("lm-eval has no such figure" in note for note in scores.notes)


def test_limit_takes_the_first_rows_of_each_subtask(run):
    scores = run("tiny_group", limit=3)
    assert [row["key"] for row in samples_of(scores)] == [
        f"{task}/{n}" for task in ("tiny_choice", "tiny_other") for n in range(3)
    ]
    assert scores.settings["limit"] == 3


def test_a_perplexity_is_no_share(run):
    with pytest.raises(RunError, match=r"has no figure that is a share.*word_perplexity"):
        run("tiny_rolling")


def test_an_interrupted_evaluation_goes_on_from_what_was_kept(run, local, tmp_path):
    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.num_done == 3:
            raise Killed

    with pytest.raises(Killed):
        run("tiny_generate", data=local, batch_size=2, on_progress=kill)
    assert cache_path(tmp_path / "out").exists()
    seen = []
    scores = run("tiny_generate", data=local, batch_size=2, on_progress=seen.append)
    assert (seen[0].num_kept, seen[0].num_done, scores.generation["num_kept"]) == (3, 3, 3)
    fresh = run("tiny_generate", data=local, batch_size=2, name="fresh")
    assert samples_of(scores) == samples_of(fresh)
    assert scores.generation["num_new_tokens"] == fresh.generation["num_new_tokens"]
    assert scores.generation["num_cut"] == fresh.generation["num_cut"]


def test_another_model_of_the_same_name_is_not_given_the_kept_answers(run, chat_model, tmp_path, local, monkeypatch):
    def kill(progress):
        if progress.num_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("tiny_generate", data=local, on_progress=kill)
    monkeypatch.setattr("misotune.evaluation.harness.chat_lm.model_identity", lambda *_: "trained again")
    assert run("tiny_generate", data=local).generation["num_kept"] == 0


def test_memory_that_does_not_hold_a_batch_halves_it(run, monkeypatch):
    import torch

    from misotune.evaluation.harness.chat_lm import ChatLM

    call, sizes = ChatLM._model_call, []

    def small_memory(self, inps, *args, **kwargs):
        sizes.append(len(inps))
        if len(inps) > 1:
            raise torch.OutOfMemoryError
        return call(self, inps, *args, **kwargs)

    expected = run("tiny_choice", name="whole")
    monkeypatch.setattr(ChatLM, "_model_call", small_memory)
    scores = run("tiny_choice")
    assert sizes[:3] == [4, 2, 1]
    assert (scores.figures, scores.settings["batch_size"]) == (expected.figures, 1)


def test_a_server_answers_tasks_that_generate(run, local, tmp_path):
    def reply(request):
        return (
            str(sum(int(word.strip("?")) for word in question_of(request).split() if word.strip("?").isdigit()))
            + " Q: more"
        )

    with ChatServer(reply) as server:
        scores = run("tiny_generate", data=local, server=EndpointBackend(Server(server.url, "small")))
        assert scores.figures["exact_match (number)"] == 1.0
        assert [turn["role"] for turn in server.requests[0]["messages"]] == [
            "system", "user", "assistant", "user", "assistant", "user",
        ]  # fmt: skip
        assert server.requests[0]["max_tokens"] == 12
        assert all(" more" not in row["response"] for row in samples_of(scores))
        assert scores.settings["backend"] == "endpoint"
        with pytest.raises(UsageError, match=r"compares the probabilities of given answers"):
            run("tiny_choice", server=EndpointBackend(Server(server.url, "small")))


def test_the_set_of_prompts_is_hashed_whatever_the_model(run, local):
    with ChatServer(lambda request: "4") as server:
        served = run("tiny_generate", data=local, server=EndpointBackend(Server(server.url, "small")), name="served")
    here = run("tiny_generate", data=local)
    assert here.prompts_sha256 == served.prompts_sha256
    assert run("tiny_generate", data=local, num_fewshot=1).prompts_sha256 != here.prompts_sha256


def test_responses_longer_than_the_context_are_refused(run, local):
    with pytest.raises(RunError, match=r"leave no room for a prompt.*--max-new-tokens"):
        run("tiny_generate", data=local, max_new_tokens=5000)


def test_an_unwritable_result_folder_is_told_before_anything_is_loaded(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(MisotuneError, match=r"no result of eval"):
        run("no_such_task")


def test_nothing_of_lm_evals_reaches_the_terminal(run, capfd):
    run("tiny_choice")
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")
