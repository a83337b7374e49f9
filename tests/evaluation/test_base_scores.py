"""The base model's scores lie in the run, are taken from there while they fit, and say what training changed."""

import json

import pytest
from tests.evaluation.comparison.result_rows import ifeval_row
from tests.export.conftest import start_run

from misotune.errors import RunError, UsageError
from misotune.evaluation import base_scores
from misotune.evaluation.base_scores import base_dtype, base_of, compare_with_base, keep_as_base, kept_base
from misotune.evaluation.evaluate import evaluate_model
from misotune.evaluation.models import ModelSource, source_of_run
from misotune.evaluation.tasks import TaskOptions, load_task
from misotune.report.against_base import is_stale, read_against_base

SETTINGS = {
    "backend": "hf",
    "max_new_tokens": 64,
    "dtype": "bfloat16",
    "batch_size": 64,
    "device": "cpu",
    "limit": None,
}
PROMPTS = "same" * 16


@pytest.fixture
def run(tmp_path, tiny_model_dir):
    run = start_run(tmp_path / "runs" / "tiny", tiny_model_dir)
    run.final.symlink_to(tiny_model_dir, target_is_directory=True)
    return run


@pytest.fixture
def write(run, tiny_model_dir):
    """Writes a result of 40 prompts, of which the model of that folder meets the first so many."""

    def write_result(folder, num_met, *, model=str(tiny_model_dir), prompts_sha256=PROMPTS, settings=SETTINGS):
        folder = folder / "ifeval"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [ifeval_row(key, [key < num_met]) for key in range(40)]
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        figure = num_met / 40
        scores = {"format": 2, "task": "ifeval", "model": model, "prompts_sha256": prompts_sha256, "num_prompts": 40,
                  "figures": {"prompt_level_strict_acc": figure}, "settings": settings}  # fmt: skip
        (folder / "scores.json").write_text(json.dumps(scores))

    return write_result


def test_a_runs_base_is_the_recipes_model_read_with_the_runs_template(run, tiny_model_dir):
    base = base_of(source_of_run(run))
    assert base == ModelSource(str(tiny_model_dir), str(tiny_model_dir), tokenizer=str(run.final))


def test_a_bases_revision_belongs_to_its_name(run, tiny_model_dir):
    recipe = run.recipe.read_text()
    run.recipe.write_text(recipe.replace(f"name: {tiny_model_dir}\n", f"name: {tiny_model_dir}\n  revision: v2\n"))
    base = base_of(source_of_run(run))
    assert (base.name, base.path, base.revision) == (f"{tiny_model_dir}@v2", str(tiny_model_dir), "v2")


def test_what_is_no_run_has_no_base():
    with pytest.raises(UsageError, match=r"org/model is no run, .*leave out --base, or name the run's folder with"):
        base_of(ModelSource("org/model", "org/model"))


def test_a_base_that_is_gone_is_named(run, tiny_model_dir):
    run.recipe.write_text(run.recipe.read_text().replace(str(tiny_model_dir), "/gone/model"))
    with pytest.raises(UsageError, match="model /gone/model: no such folder here"):
        base_of(source_of_run(run))


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "bfloat16"), ("float16", "auto"), (None, "auto")])
def test_the_base_is_loaded_in_the_dtype_of_the_run(dtype, expected):
    assert base_dtype({"dtype": dtype}) == expected


@pytest.mark.parametrize(
    ("changed", "is_kept"),
    [
        ({}, True),
        ({"settings": {**SETTINGS, "batch_size": 2, "device": "cuda", "num_processes": 8}}, True),
        ({"settings": {**SETTINGS, "stop": ("a",)}}, False),
        ({"settings": {**SETTINGS, "max_new_tokens": 65}}, False),
        ({"settings": {**SETTINGS, "dtype": "float32"}}, False),
        ({"settings": {**SETTINGS, "limit": 5}}, False),
        ({"settings": {**SETTINGS, "judge": {"model": "another"}}}, False),
        ({"prompts_sha256": "other"}, False),
    ],
)
def test_base_scores_are_kept_while_all_that_decides_them_is_the_same(run, write, changed, is_kept):
    assert kept_base(run, "ifeval", prompts_sha256=PROMPTS, settings=SETTINGS) is None
    write(run.base_scores, 20)
    asked = {"prompts_sha256": PROMPTS, "settings": SETTINGS} | changed
    assert kept_base(run, "ifeval", **asked) == (run.base_scores / "ifeval" if is_kept else None)
    write(run.scores, 20, **changed)
    assert (compare_with_base(run, "ifeval") is not None) == is_kept
    assert run.against_base.exists() == is_kept


def test_settings_that_only_json_writes_otherwise_are_the_same(run, write):
    settings = {**SETTINGS, "stop": ("a", "b")}
    write(run.base_scores, 20, settings=settings)
    assert kept_base(run, "ifeval", prompts_sha256=PROMPTS, settings=settings) is not None


def test_scores_of_another_base_model_are_not_kept(run, write):
    write(run.base_scores, 20, model="another")
    assert kept_base(run, "ifeval", prompts_sha256=PROMPTS, settings=SETTINGS) is None


@pytest.mark.parametrize(
    ("base", "tuned", "finding"),
    [
        (30, 10, "IFEval prompt strict fell by 50.0 points (95 % interval -65.0 to -35.0)"),
        (10, 30, "IFEval prompt strict rose by 50.0 points (95 % interval +35.0 to +65.0)"),
        (20, 21, "IFEval prompt strict did not change beyond the noise (+2.5 points, 95 % interval 0.0 to +7.5)"),
    ],
)
def test_the_comparison_says_what_training_changed(run, write, base, tuned, finding):
    write(run.base_scores, base)
    write(run.scores, tuned, model="runs/tiny")
    found = compare_with_base(run, "ifeval")
    assert found.finding() == finding
    assert read_against_base(run, "ifeval") == found
    assert {"comparison.json", "comparison.html"} <= {path.name for path in (run.against_base / "ifeval").iterdir()}


def test_without_scores_of_both_there_is_no_comparison(run, write):
    assert compare_with_base(run, "ifeval") is None
    write(run.scores, 20)
    assert compare_with_base(run, "ifeval") is None
    assert not is_stale(run, "ifeval")


def test_other_prompts_leave_an_older_comparison_stale_and_the_same_ones_renew_it(run, write):
    write(run.base_scores, 20)
    write(run.scores, 20)
    assert compare_with_base(run, "ifeval") is not None
    write(run.scores, 20, prompts_sha256="other")
    assert compare_with_base(run, "ifeval") is None
    assert is_stale(run, "ifeval")
    write(run.scores, 5)
    assert compare_with_base(run, "ifeval").is_loss
    assert not is_stale(run, "ifeval")


def test_scores_that_change_while_they_are_compared_are_found_out(run, write, monkeypatch):
    write(run.base_scores, 20)
    write(run.scores, 20)

    def hash_then_evaluate_again(run, task):
        hashes = hash_scores(run, task)
        write(run.scores, 5)
        return hashes

    hash_scores = base_scores.hash_scores
    monkeypatch.setattr(base_scores, "hash_scores", hash_then_evaluate_again)
    assert compare_with_base(run, "ifeval") is not None
    assert is_stale(run, "ifeval")


def test_a_comparison_that_cannot_be_finished_says_so_and_is_stale(run, write, monkeypatch):
    write(run.base_scores, 20)
    write(run.scores, 20)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base_scores, "keep_hashes", fail)
    with pytest.raises(RunError, match=r"against-base/ifeval: the comparison cannot be written: No space left"):
        compare_with_base(run, "ifeval")
    assert is_stale(run, "ifeval")


def test_a_result_from_before_the_run_becomes_its_base_scores(run, tiny_model_dir, tmp_path):
    """As in quickstart: nothing is evaluated twice, and the same weights score the same."""
    data = tmp_path / "data.jsonl"
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    data.write_text("".join(json.dumps({**row, "key": key, "prompt": f"Q{key}"}) + "\n" for key in range(6)))
    task = load_task("ifeval", TaskOptions(data=data, offline=True))
    before = evaluate_model(str(tiny_model_dir), task, out=tmp_path / "before", max_new_tokens=4)
    assert keep_as_base(run, before) == run.base_scores / "ifeval"
    tuned = evaluate_model(source_of_run(run), task, max_new_tokens=4, batch_size=2)
    assert kept_base(run, "ifeval", prompts_sha256=tuned.prompts_sha256, settings=tuned.settings) is not None
    found = compare_with_base(run, "ifeval")
    assert (found.num_prompts, found.base_model) == (6, str(tiny_model_dir))
    assert all(change.base == change.tuned and change.direction is None for change in found.changes)
