import json

import pytest
from typer.testing import CliRunner

from misotune.cli.main import app
from misotune.errors import DataError, UsageError

QUICK = ("--limit", "1", "--max-inputs", "3", "--max-length", "700")


@pytest.fixture
def inspect_dilution(tmp_path, monkeypatch):
    """Runs `misotune inspect dilution` in an empty folder; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(
        app, ["inspect", "dilution", *map(str, arguments)], catch_exceptions=False
    )


def write_rows(path, *texts):
    inputs = [{"role": "full", "messages": [{"role": "user", "content": text}]} for text in texts]
    path.write_text(json.dumps({"id": "r", "inputs": inputs, "output": "An answer."}) + "\n")


def test_it_prints_a_table_and_writes_the_picture(inspect_dilution, tiny_model_dir, tmp_path):
    result = inspect_dilution(tiny_model_dir, *QUICK)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["n", "vanilla", "uniform", "fid"] in lines
    assert [line[0] for line in lines if line and line[0].isdigit()] == ["1", "2", "3"]
    assert "measured: row 1 of 1" in result.stderr
    folder = tmp_path / "inspect" / tiny_model_dir.name / "dilution"
    names = {*(f"dilution.{x}" for x in ("json", "csv", "svg", "png")), "index.html"}
    assert {path.name for path in folder.iterdir()} == names


def test_json_is_all_that_stands_on_standard_output(inspect_dilution, tiny_model_dir, tmp_path):
    result = inspect_dilution(tiny_model_dir, *QUICK, "--json", "--out", "found")
    content = json.loads(result.stdout)
    assert content["num_inputs"] == [1, 2, 3]
    assert [len(layers) for layers in content["share_by_layer"]["vanilla"]] == [2, 2, 2]
    assert content["settings"]["dtype"] == "float32"
    assert content["settings"]["data"] == "starter"
    assert content.pop("folder") == "found"
    assert json.loads((tmp_path / "found" / "dilution.json").read_text()) == content


def test_generate_shows_how_fluent_the_texts_are_and_keeps_them(inspect_dilution, tiny_model_dir, tmp_path):
    write_rows(tmp_path / "rows.jsonl", "a", "b")
    arguments = ("--data", "rows.jsonl", "--max-inputs", 2, "--generate", "--max-new-tokens", 5, "--out", "found")
    result = inspect_dilution(tiny_model_dir, *arguments)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    texts = [line[:2] for line in lines if len(line) == 6 and line[0] in ("-", "1", "2")]
    assert texts == [["-", "response"], ["1", "plain"], ["2", "vanilla"], ["2", "uniform"], ["2", "fid"]]
    texts = [json.loads(line) for line in (tmp_path / "found" / "continuations.jsonl").read_text().splitlines()]
    assert [(text["num_inputs"], text["weighting"]) for text in texts] == [
        (0, "response"),
        (1, "plain"),
        (2, "vanilla"),
        (2, "uniform"),
        (2, "fid"),
    ]
    # What was given is repeated, in the order of the help; what a shell would take apart is quoted.
    command = (
        f"misotune inspect dilution {tiny_model_dir} --data rows.jsonl --max-inputs 2 --generate --max-new-tokens 5"
    )
    assert f"<code>{command} --out found</code>" in (tmp_path / "found" / "index.html").read_text()


def test_one_input_can_be_repeated(inspect_dilution, tiny_model_dir, tmp_path):
    write_rows(tmp_path / "rows.jsonl", "alone")
    with pytest.raises(DataError, match="no row with several inputs in 1024 tokens"):
        inspect_dilution(tiny_model_dir, "--data", "rows.jsonl")
    result = inspect_dilution(tiny_model_dir, "--data", "rows.jsonl", "--repeat", "--max-inputs", 4, "--json")
    shares = json.loads(result.stdout)["mean_share"]
    assert shares["vanilla"][0] > shares["vanilla"][1] > shares["vanilla"][2]
    assert shares["fid"] == pytest.approx([shares["fid"][0]] * 3, abs=1e-5)


def test_a_run_keeps_its_own_result(inspect_dilution, tiny_model_dir, tmp_path):
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "final").symlink_to(tiny_model_dir, target_is_directory=True)
    assert inspect_dilution("first", *QUICK).exit_code == 0
    assert (run / "inspect" / "dilution" / "dilution.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere"], r"\./nowhere: no such folder"),
        (["no-such-model"], "model no-such-model: no such folder here, and the hub gave none"),
        (["MODEL", "--data", "nowhere.jsonl"], r"--data nowhere\.jsonl: no such file or folder"),
        (["MODEL", "--out", "mine"], "mine: holds files that are no result of inspect dilution"),
        (["MODEL", "--dtype", "int8"], "dtype 'int8' is not one of auto, bfloat16, float32"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_measured(
    inspect_dilution, tiny_model_dir, tmp_path, arguments, message
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=message):
        inspect_dilution(*(str(tiny_model_dir) if argument == "MODEL" else argument for argument in arguments))
    assert not (tmp_path / "inspect").exists()


@pytest.mark.parametrize("value", ["1", "0", "many"])
def test_a_wrong_number_of_inputs_is_a_wrong_command(inspect_dilution, tiny_model_dir, value):
    result = inspect_dilution(tiny_model_dir, "--max-inputs", value)
    assert result.exit_code == 2
    assert "--max-inputs" in result.stderr
