import json

import pytest
from typer.testing import CliRunner

from misotune.cli.main import app
from misotune.errors import UsageError


@pytest.fixture
def inspect_dependency(tmp_path, monkeypatch):
    """Runs `misotune inspect dependency` in an empty folder; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(
        app, ["inspect", "dependency", *map(str, arguments)], catch_exceptions=False
    )


@pytest.fixture
def rows(tmp_path):
    lines = [
        {"id": "a", "inputs": [{"role": "full", "messages": [{"role": "user", "content": text}]}], "output": "Yes."}
        for text in ("Is it [so]?", "b" * 100, "\n")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "rows.jsonl"


def test_it_prints_histogram_and_rows_and_writes_the_dataset(inspect_dependency, tiny_model_dir, rows, tmp_path):
    result = inspect_dependency(tiny_model_dir, rows, "--show", 1, "--write", "new.jsonl", "--max-length", 121)
    assert result.exit_code == 0, result.output
    assert f"dependency scores, layer 1: {tiny_model_dir.name}, 2 rows of rows.jsonl" in result.stdout
    assert "2 responses: mean " in result.stdout
    assert "1 of 3 rows left out; 1 cut by --max-length" in result.stdout
    assert "Is it [so]?" in result.stdout
    assert f"{'b' * 57}..." in result.stdout
    assert "the dataset with its scores: new.jsonl" in result.stdout
    assert "scored: row 3 of 3" in result.stderr
    folder = tmp_path / "inspect" / tiny_model_dir.name / "dependency"
    names = {*(f"dependency.{x}" for x in ("json", "csv", "svg", "png")), "index.html"}
    assert {path.name for path in folder.iterdir()} == names
    # --show is of the terminal alone.
    command = f"misotune inspect dependency {tiny_model_dir} rows.jsonl --max-length 121 --write new.jsonl"
    assert f"<code>{command}</code>" in (folder / "index.html").read_text()
    scores = [json.loads(line)["dependency"] for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert scores[:2] == [entry["score"] for entry in json.loads((folder / "dependency.json").read_text())["scores"]]
    assert scores[2] is None


def test_json_is_all_that_stands_on_standard_output(inspect_dependency, tiny_model_dir, rows, tmp_path):
    options = ("--json", "--out", "found", "--layers", "1-2", "--threshold", 0.5, "--limit", 1)
    content = json.loads(inspect_dependency(tiny_model_dir, rows, *options).stdout)
    assert (content["settings"]["layers"], content["settings"]["threshold"], content["rows"]) == ([1, 2], 0.5, 1)
    assert content.pop("folder") == "found"
    assert json.loads((tmp_path / "found" / "dependency.json").read_text()) == content


def test_the_starter_set_is_what_it_looks_at_unless_told(inspect_dependency, tiny_model_dir):
    result = inspect_dependency(tiny_model_dir, "--limit", 1)
    assert "1 row of the starter set" in result.stdout


def test_a_run_keeps_its_own_result(inspect_dependency, tiny_model_dir, rows, tmp_path):
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "final").symlink_to(tiny_model_dir, target_is_directory=True)
    assert inspect_dependency(run, rows).exit_code == 0
    assert (run / "inspect" / "dependency" / "dependency.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere"], r"\./nowhere: no such folder"),
        (["MODEL", "nowhere.jsonl"], r"nowhere\.jsonl: no such file or folder; write a dataset: misotune prepare"),
        (["MODEL", "--write", "new.jsonl"], r"--write new\.jsonl: the starter set is no dataset"),
        (["MODEL", "rows.jsonl", "--write", "new"], r"--write new: rows\.jsonl is a file of rows"),
        (["MODEL", "--layers", "3"], "--layers 3: the model has layers 1 to 2"),
        (["MODEL", "--dtype", "int8"], "dtype 'int8' is not one of auto, bfloat16, float32"),
    ],
)
@pytest.mark.usefixtures("rows")
def test_a_wrong_command_is_refused_before_anything_is_measured(
    inspect_dependency, tiny_model_dir, tmp_path, arguments, message
):
    with pytest.raises(UsageError, match=message):
        inspect_dependency(*(str(tiny_model_dir) if argument == "MODEL" else argument for argument in arguments))
    assert not (tmp_path / "inspect").exists()
