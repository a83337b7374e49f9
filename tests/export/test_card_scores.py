"""The model card on scores: the model's own, and what training gained or lost."""

import json
from pathlib import Path

import pytest
from tests.report.test_against_base import comparison

from misotune.export.card_scores import scores_section
from misotune.report.against_base import hash_scores, keep_hashes
from misotune.runs import RunFolder

FIGURES = {"prompt_level_strict_acc": 0.469, "recall": 0.25}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return RunFolder(Path("runs/a"))


def score(run, task="ifeval", figures=FIGURES):
    for folder in (run.scores, run.base_scores):
        (folder / task).mkdir(parents=True, exist_ok=True)
    scores = {"task": task, "num_prompts": 541, "figures": figures}
    (run.scores / task / "scores.json").write_text(json.dumps(scores))
    (run.base_scores / task / "scores.json").write_text("{}")


def compare(run, task="ifeval", verdict="A is better", tuned=0.469):
    folder = run.against_base / task
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps({**comparison(verdict, tuned), "task": task}))
    keep_hashes(run, task, hash_scores(run, task))


def test_a_run_that_was_not_evaluated_says_how(run):
    assert scores_section(run) == "Not evaluated before the export: `misotune eval` does it."


def test_a_model_that_fell_is_said_to_have_fallen(run):
    score(run)
    compare(run)
    section = scores_section(run)
    assert "Against its base model: IFEval prompt strict fell by 3.1 points (95 % interval -5.1 to -1.1)." in section
    assert "| ifeval | prompt strict | fell | 50.00 | 46.90 | -3.1 | -5.1 to -1.1 |" in section
    assert "| ifeval | recall | within the noise | 25.00 | 25.00 | 0.0 | -2.0 to +2.0 |" in section
    assert "- ifeval: a note" in section
    assert "not measured" not in section
    assert "--base" not in section


def test_a_stale_comparison_is_not_shown(run):
    score(run)
    compare(run)
    score(run, figures={**FIGURES, "prompt_level_strict_acc": 0.9})
    section = scores_section(run)
    assert "| ifeval | 541 | 90.00 | 25.00 |" in section
    assert "fell" not in section
    assert "The comparison with its base model on ifeval is not of these scores, and is not shown" in section
    assert "`misotune eval ifeval --model runs/a --base` makes it again" in section


def test_what_was_not_measured_is_said_with_the_command(run):
    score(run)
    compare(run, verdict="B is better", tuned=0.531)
    for task in ("quac", "starter"):
        (run.scores / task).mkdir()
        (run.scores / task / "scores.json").write_text(
            json.dumps({"task": task, "num_prompts": 9, "figures": {"contains": 0.5}})
        )
    section = scores_section(run)
    assert "IFEval prompt strict rose by 3.1 points" in section
    assert "What its base model scores on quac and starter was not measured" in section
    assert "`misotune eval quac starter --model runs/a --base` measures it." in section
