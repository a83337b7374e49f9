import json

import pytest
import typer
from tests.export.conftest import make_full_run, start_run
from tests.export.test_card_scores import compare, score
from typer.testing import CliRunner

from misotune.cli.export import export
from misotune.errors import UsageError

app = typer.Typer()
app.command("export")(export)
app.command("other")(lambda: None)


@pytest.fixture
def misotune_export(tmp_path, monkeypatch):
    """Runs `misotune export` in an empty folder; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments):
        return CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)

    return run


def test_without_a_name_the_newest_finished_run_is_exported_and_named(misotune_export, tiny_model_dir, tmp_path):
    make_full_run(tmp_path / "runs" / "first", tiny_model_dir)
    result = misotune_export()
    assert result.exit_code == 0, result.output
    assert "exporting the newest finished run: runs/first" in result.stderr
    assert "proved: Opened in a fresh process by transformers alone:" in result.stdout
    assert "exported: exports/first (" in result.stdout
    assert 'model = AutoModelForCausalLM.from_pretrained("exports/first")' in result.stdout
    with pytest.raises(UsageError, match="exports/first: is there already; --overwrite replaces it"):
        misotune_export("first")


def test_a_run_is_found_by_its_name_and_json_stands_alone(misotune_export, tiny_model_dir, tmp_path):
    make_full_run(tmp_path / "runs" / "first", tiny_model_dir, precision="bf16")
    result = misotune_export("first", "out/model", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert (content["run"], content["path"]) == ("runs/first", "out/model")
    assert content["proof"]["tolerance"] == 1e-4


def test_a_model_that_fell_is_warned_of_on_stderr_alone(misotune_export, tiny_model_dir, tmp_path):
    run = make_full_run(tmp_path / "runs" / "first", tiny_model_dir)
    score(run)
    compare(run)
    result = misotune_export("first", "--json")
    (found,) = json.loads(result.stdout)["against_base"]
    assert (found["task"], found["changes"][0]["direction"]) == ("ifeval", "fell")
    warning = "warning: against its base model, IFEval prompt strict fell by 3.1 points (95 % interval -5.1 to -1.1)"
    assert warning in result.stderr.splitlines()
    assert "Against its base model: IFEval prompt strict fell" in (tmp_path / "exports/first/README.md").read_text()


def test_a_model_that_did_not_fall_is_not_warned_of(misotune_export, tiny_model_dir, tmp_path):
    run = make_full_run(tmp_path / "runs" / "first", tiny_model_dir)
    for task, verdict in (("drop", "B is better"), ("ifeval", "within the noise"), ("quac", "A is better")):
        score(run, task)
        compare(run, task, verdict)
    score(run, "quac", {"recall": 0.9})  # its comparison is stale now
    assert "warning" not in misotune_export("first").stderr


def test_a_run_that_did_not_finish_is_refused(misotune_export, tiny_model_dir, tmp_path):
    start_run(tmp_path / "runs" / "cut", tiny_model_dir)
    with pytest.raises(UsageError, match="runs/cut: training did not finish"):
        misotune_export("cut")


def test_no_run_at_all_is_refused(misotune_export):
    with pytest.raises(UsageError, match=r"no finished run in runs/.*misotune train RECIPE"):
        misotune_export()
    with pytest.raises(UsageError, match="nowhere: no such folder; runs lie in runs/"):
        misotune_export("nowhere")
