"""`misotune recipe`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from misotune.cli import recipe as recipe_command
from misotune.errors import RecipeError
from misotune.recipe.loading import find_recipe, load_recipe
from misotune.recipe.resolved import dump
from misotune.recipe.schema import recipe_json_schema

runner = CliRunner()


def invoke(*arguments: str):
    return runner.invoke(recipe_command.app, list(arguments))


def test_show_prints_the_resolved_recipe_that_loads_again(tmp_path):
    result = invoke("show", "llama3_crab", "train.max_steps=20", "deepspeed=null")
    assert result.exit_code == 0
    assert "# flag train.max_steps=20\n" in result.stdout
    again = tmp_path / "again.yaml"
    again.write_text(result.stdout)
    expected = load_recipe(find_recipe("llama3_crab"), ["train.max_steps=20", "deepspeed=null"])
    assert load_recipe(again).recipe == expected.recipe


def test_show_as_json_has_values_and_origins():
    shown = json.loads(invoke("show", "quickstart", "--json", "seed=7").stdout)
    assert shown["recipe"]["seed"] == 7
    assert shown["origins"]["seed"] == "flag seed=7"
    assert shown["origins"]["lora"] == "default"


def test_the_terminal_shows_the_same_text_in_colour(monkeypatch):
    resolved = load_recipe(find_recipe("quickstart"), ["seed=7", f"model.name={'x' * 99}"])
    assert recipe_command.paint(resolved).plain == dump(resolved).rstrip("\n")
    monkeypatch.setattr(
        recipe_command,
        "Console",
        lambda **settings: Console(**settings, force_terminal=True, color_system="standard", no_color=False),
    )
    result = invoke("show", "quickstart", "seed=7")
    assert "\x1b[" in result.stdout


def test_schema_prints_the_json_schema():
    assert json.loads(invoke("schema").stdout) == recipe_json_schema()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quikstart"], "quikstart: no such recipe; did you mean 'quickstart'?"),
        (["quickstart", "train.learnig_rate=1"], "unknown key; did you mean 'learning_rate'?"),
    ],
)
def test_a_wrong_recipe_is_left_to_the_command_line_to_print(arguments, message):
    result = invoke("show", *arguments)
    assert isinstance(result.exception, RecipeError)
    assert message in str(result.exception)


def test_the_module_loads_neither_pydantic_nor_yaml_nor_torch():
    heavy = ("pydantic", "yaml", "torch", "transformers")
    code = f"import sys, misotune.cli.recipe; sys.exit(any(name in sys.modules for name in {heavy}))"
    source = Path(typer.__file__).parents[1], Path(recipe_command.__file__).parents[2]
    environment = {"PYTHONPATH": ":".join(map(str, source))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
