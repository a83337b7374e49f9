import json

import pytest
import typer
from typer.testing import CliRunner

from misotune.cli.prepare import next_command, prepare
from misotune.data.dataset import read_dataset
from misotune.data.sources.fields import JOINS as DATA_JOINS
from misotune.errors import MisotuneError

ROW = {"instruction": "Name a river.", "constraints": ["Be brief."], "output": "Rhine"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(prepare)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def write_rows(tmp_path, *rows):
    (tmp_path / "rivers.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_the_default_place_is_named_after_source_and_mode(run, tmp_path):
    write_rows(tmp_path, ROW, ROW)
    result = run("rivers.jsonl")
    assert result.exit_code == 0, result.output
    assert len(read_dataset(tmp_path / "data" / "rivers-para")) == 2
    assert "2 rows, 3 inputs each, in data/rivers-para" in result.output
    assert "next: misotune train recipes/quickstart.yaml data.path=data/rivers-para miso.mode=para" in result.output


def test_json_is_all_that_stdout_holds(run, tmp_path):
    write_rows(tmp_path, ROW, {"instruction": "x"})
    result = run("rivers.jsonl", "--json", "--max-dropped", "0.5", "--mode", "flat", "--out", "here")
    answer = json.loads(result.stdout)
    assert (answer["out"], answer["rows"], answer["account"]["num_bad"]) == ("here", 3, 1)
    assert "bad row: rivers.jsonl:2: no column 'output'" in result.stderr


def test_only_the_first_bad_rows_are_printed(run, tmp_path):
    write_rows(tmp_path, *[{"instruction": "x"}] * 9, ROW)
    result = run("rivers.jsonl", "--max-dropped", "1")
    assert result.stderr.count("bad row: ") == 5
    assert len((tmp_path / "data" / "rivers-para" / "dropped.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["craab"], "unknown source 'craab': did you mean 'crab'?"),
        (["crab", "--mode", "paar"], "--mode 'paar': did you mean 'para'? allowed are para, succ, sft, flat"),
        (["crab", "--join", "x"], "--join 'x': allowed are lines, bullets, paragraph, mixed"),
        (["crab", "--data", "no.jsonl"], "no.jsonl: no such file"),
        (["sharegpt"], "source 'sharegpt' needs a file"),
    ],
)
def test_a_wrong_command_is_one_line_and_code_2(run, arguments, message):
    error = run(*arguments).exception
    assert isinstance(error, MisotuneError)
    assert error.exit_code == 2
    assert message in str(error)
    assert "\n" not in str(error)


def test_the_joins_of_the_command_are_those_of_the_data_stage():
    from misotune.cli.prepare import JOINS

    assert JOINS == DATA_JOINS


def test_the_next_command_is_bare_where_a_shipped_recipe_reads_the_default_place(tmp_path):
    from pathlib import Path

    assert next_command(Path("data/crab-para"), "crab", "para") == "misotune train recipes/llama3_crab.yaml"
    assert next_command(Path("data/starter-para"), "starter", "para") == "misotune train recipes/quickstart.yaml"
    assert next_command(Path("data/r1-succ"), "r1", "succ") == "misotune train recipes/llama3_r1.yaml"
    elsewhere = next_command(Path("my data/x"), "crab", "para")
    assert elsewhere == "misotune train recipes/llama3_crab.yaml 'data.path=my data/x'"
    assert next_command(Path("data/crab-flat"), "crab", "flat").endswith("data.path=data/crab-flat miso.mode=sft")
