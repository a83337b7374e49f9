import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from misotune.cli.main import app
from misotune.errors import UsageError
from misotune.runs import RunFolder


@pytest.fixture
def misotune_report(tmp_path, monkeypatch):
    """Runs `misotune report` in an empty folder; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)


def make_run(name, time, loss=1.25):
    """Makes a run that stands at step 3 of 8, and wrote that at `time`."""
    run = RunFolder(Path("runs") / name)
    run.path.mkdir(parents=True)
    run.recipe.write_text(f"name: {name}\n")
    run.metrics.write_text(json.dumps({"step": 3, "num_steps": 8, "loss": loss, "elapsed_s": 2.0}) + "\n")
    os.utime(run.metrics, (time, time))
    return run


def test_without_a_name_the_run_that_wrote_metrics_last_is_taken_and_named(misotune_report):
    newer, older = make_run("newer", time=2), make_run("older", time=1)
    RunFolder(Path("runs/planned")).path.mkdir()  # the newest folder, of a run that has no step yet
    result = misotune_report()
    assert result.stdout == "page: runs/newer/report.html\n"
    assert result.stderr == "the newest run: runs/newer\n"
    assert "3 of 8" in newer.report.read_text()
    assert not older.report.exists()


@pytest.mark.parametrize("name", ["older", "runs/older", "./runs/older"])
def test_a_run_is_found_by_its_name_or_folder(misotune_report, name):
    make_run("newer", time=2)
    older = make_run("older", time=1)
    result = misotune_report(name)
    assert result.stdout == f"page: {older.report}\n"
    assert result.stderr == ""


@pytest.mark.parametrize(("loss", "told"), [(1.25, 1.25), (float("nan"), None)])
def test_json_says_where_the_page_is_and_how_far_the_run(misotune_report, loss, told):
    run = make_run("first", time=1, loss=loss)
    assert json.loads(misotune_report("first", "--json").stdout) == {
        "page": "runs/first/report.html",
        "run": "runs/first",
        "is_finished": False,
        "step": 3,
        "num_steps": 8,
        "loss": told,
        "num_metrics": 1,
        "num_events": 0,
    }
    assert run.report.is_file()


def test_no_run_is_refused(misotune_report):
    with pytest.raises(UsageError, match=r"no run with metrics in runs/; .*misotune train RECIPE"):
        misotune_report()
    with pytest.raises(UsageError, match="nowhere is not there; name a folder that misotune train wrote"):
        misotune_report("nowhere")
