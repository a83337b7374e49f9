"""What a run's scores say against its base model's: read back only where it was made of the scores that are there."""

import json

import pytest

from misotune.report.against_base import (
    AgainstBase,
    FigureChange,
    against_base_of,
    hash_scores,
    is_stale,
    keep_hashes,
    read_against_base,
    tasks_of_run,
)
from misotune.runs import RunFolder


def line(metric, base, tuned, verdict):
    return {"metric": metric, "a": base, "b": tuned, "low": tuned - base - 0.02, "high": tuned - base + 0.02,
            "verdict": verdict}  # fmt: skip


def comparison(verdict="A is better", tuned=0.469):
    overall = [line("prompt_level_strict_acc", 0.5, tuned, verdict), line("recall", 0.25, 0.25, "within the noise")]
    return {
        "task": "ifeval",
        "results": {"A": {"model": "org/base"}, "B": {"model": "runs/a"}},
        "pairs": [
            {"num_prompts": 541, "main_metric": "prompt_level_strict_acc", "overall": overall, "notes": ["a note"]}
        ],
    }


@pytest.fixture
def run(tmp_path):
    """A run with scores, base scores and their comparison."""
    run = RunFolder(tmp_path)
    for folder in (run.scores, run.base_scores):
        (folder / "ifeval").mkdir(parents=True)
        (folder / "ifeval" / "scores.json").write_text(json.dumps({"of": folder.name}))
    (run.against_base / "ifeval").mkdir(parents=True)
    (run.against_base / "ifeval" / "comparison.json").write_text(json.dumps(comparison()))
    keep_hashes(run, "ifeval", hash_scores(run, "ifeval"))
    return run


def test_what_is_read_is_what_was_found(run):
    found = read_against_base(run, "ifeval")
    assert found == against_base_of(comparison())
    assert (found.task, found.base_model, found.num_prompts, found.notes) == ("ifeval", "org/base", 541, ("a note",))
    assert found.main == FigureChange(
        "prompt_level_strict_acc", 0.5, 0.469, pytest.approx(-0.051), pytest.approx(-0.011), "fell"
    )
    assert [change.direction for change in found.changes] == ["fell", None]
    assert not is_stale(run, "ifeval")
    assert tasks_of_run(run) == ["ifeval"]


@pytest.mark.parametrize(
    ("verdict", "tuned", "finding"),
    [
        ("A is better", 0.469, "IFEval prompt strict fell by 3.1 points (95 % interval -5.1 to -1.1)"),
        ("B is better", 0.531, "IFEval prompt strict rose by 3.1 points (95 % interval +1.1 to +5.1)"),
        (
            "within the noise",
            0.504,
            "IFEval prompt strict did not change beyond the noise (+0.4 points, 95 % interval -1.6 to +2.4)",
        ),
        (
            "within the noise",
            0.5,
            "IFEval prompt strict did not change beyond the noise (0.0 points, 95 % interval -2.0 to +2.0)",
        ),
    ],
)
def test_the_finding_is_a_plain_sentence(verdict, tuned, finding):
    found = against_base_of(comparison(verdict, tuned))
    assert found.finding() == finding
    assert found.is_loss == (verdict == "A is better")


def test_a_task_and_a_figure_without_another_name_keep_theirs():
    change = FigureChange("recall", 0.5, 0.25, -0.3, -0.2, "fell")
    found = AgainstBase("needle", "base", 88, "recall", (change,))
    assert found.finding() == "needle recall fell by 25.0 points (95 % interval -30.0 to -20.0)"


@pytest.mark.parametrize("side", ["scores", "base_scores"])
def test_a_comparison_of_older_scores_is_stale(run, side):
    (getattr(run, side) / "ifeval" / "scores.json").write_text(json.dumps({"of": "a later evaluation"}))
    assert read_against_base(run, "ifeval") is None
    assert is_stale(run, "ifeval")


@pytest.mark.parametrize("file", ["comparison.json", "compared.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"pairs": [{"overall": [{"verdict": "new words"}]}]}'])
def test_a_comparison_that_is_half_there_or_of_another_version_is_stale(run, file, content):
    path = run.against_base / "ifeval" / file
    path.unlink() if content is None else path.write_text(content)
    assert read_against_base(run, "ifeval") is None
    assert is_stale(run, "ifeval")


def test_a_comparison_whose_scores_are_gone_is_stale(run):
    (run.base_scores / "ifeval" / "scores.json").unlink()
    assert is_stale(run, "ifeval")


def test_what_was_never_measured_is_not_stale(run):
    assert read_against_base(run, "starter") is None
    assert not is_stale(run, "starter")
