from pathlib import Path

import pytest
from rich.console import Console

from misotune.cli.eval_model import find_source
from misotune.cli.run_names import named_path
from misotune.errors import UsageError


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    """A finished run `first`, below the working folder."""
    monkeypatch.chdir(tmp_path)
    final = Path("runs/first/final")
    final.mkdir(parents=True)
    (final / "config.json").write_text("{}")
    return final.parent


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("first", "runs/first"),
        ("first/final", "runs/first/final"),
        ("runs/first", "runs/first"),
        ("./first", "./first"),
        ("~/first", "~/first"),
        ("owner/first", "owner/first"),
        ("gpt2", "gpt2"),
    ],
)
def test_a_runs_name_stands_for_its_folder_and_nothing_else_does(name, path):
    assert named_path(name) == path


def test_a_folder_here_goes_before_a_run():
    Path("first").mkdir()
    assert named_path("first") == "first"


def test_eval_takes_a_runs_name_and_leaves_a_servers_alone(run):
    source = find_source("first", Console(), is_served=False)
    assert source.run is not None
    assert (source.run.path, source.path) == (run, "runs/first/final")
    assert find_source("first", Console(), is_served=True).path == "first"


def test_an_unfinished_run_is_told_by_its_folder(run):
    (run / "final" / "config.json").unlink()
    (run / "recipe.yaml").touch()
    with pytest.raises(UsageError, match="runs/first: training did not finish"):
        find_source("first", Console(), is_served=False)
