import json

import pytest
from typer.testing import CliRunner

from misotune.cli.main import app
from misotune.errors import UsageError

QUICK = ("--limit", "2", "--max-length", "900")


@pytest.fixture
def inspect_attention(tmp_path, monkeypatch):
    """Runs `misotune inspect attention` in an empty folder; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(
        app, ["inspect", "attention", *map(str, arguments)], catch_exceptions=False
    )


def test_it_prints_tables_and_writes_the_picture(inspect_attention, tiny_model_dir, tmp_path):
    result = inspect_attention(tiny_model_dir, *QUICK)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["part", tiny_model_dir.name, "tokens"] in lines
    assert {"system", "instruction", "constraints", "rest", "response"} <= {line[0] for line in lines if line}
    assert ["model", "verdict", "constraints", "share", "tokens"] in lines
    assert f"measured: {tiny_model_dir.name}, row 2 of at most 2" in result.stderr
    folder = tmp_path / "inspect" / tiny_model_dir.name / "attention"
    names = {*(f"attention.{x}" for x in ("json", "csv", "svg", "png")), "constraints.csv", "index.html"}
    assert names <= {path.name for path in folder.iterdir()} <= names | {"verdicts.svg", "verdicts.png"}
    assert f"to be opened in a browser: inspect/{tiny_model_dir.name}/attention/index.html" in result.stdout
    command = f"misotune inspect attention {tiny_model_dir} --limit 2 --max-length 900"
    assert f"<code>{command}</code>" in (folder / "index.html").read_text()


def test_json_is_all_that_stands_on_standard_output(inspect_attention, tiny_model_dir, tmp_path):
    result = inspect_attention(tiny_model_dir, *QUICK, "--json", "--out", "found")
    content = json.loads(result.stdout)
    assert content.pop("folder") == "found"
    assert content == json.loads((tmp_path / "found" / "attention.json").read_text())


def test_several_models_stand_side_by_side(inspect_attention, tiny_model_dir, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / tiny_model_dir.name).symlink_to(tiny_model_dir)
    # Both resolve to one folder's name: they are told apart as they were named.
    result = inspect_attention(tiny_model_dir, f"other/{tiny_model_dir.name}", *QUICK, "--out", "found")
    assert result.exit_code == 0, result.output
    models = json.loads((tmp_path / "found" / "attention.json").read_text())["models"]
    assert [x["name"] for x in models] == [
        str(tiny_model_dir).strip("/").replace("/", "--"),
        f"other--{tiny_model_dir.name}",
    ]
    assert models[0]["mean_share"] == models[1]["mean_share"]


def test_what_cannot_be_is_said_before_a_model_is_loaded(inspect_attention, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("misotune.cli.inspect_attention.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=r"--data none: no such file or folder; write a dataset"):
        inspect_attention(tiny_model_dir, "--data", "none")
    with pytest.raises(UsageError, match="two models of one name"):
        inspect_attention(tiny_model_dir, tiny_model_dir)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files that are no result of inspect attention"):
        inspect_attention(tiny_model_dir, "--out", tmp_path)
