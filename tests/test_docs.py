"""The documentation says what is true of the code: its examples run, and what it names is there."""

import re
import shlex
from pathlib import Path
from unittest.mock import patch

import click
import pytest
import typer

from misotune.attention.weighting import WEIGHTINGS
from misotune.cli.main import app
from misotune.recipe.loading import find_recipe, load_recipe
from misotune.recipe.resolved import DEFAULT, leaves
from misotune.recipe.yaml_text import format_value

ROOT = Path(__file__).parents[1]
DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
TESTS = {
    name for path in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
}


def blocks(language, pages):
    for page in pages:
        for number, match in enumerate(FENCE.finditer(page.read_text(encoding="utf-8"))):
            if match["language"] == language:
                yield pytest.param(match["code"], id=f"{page.stem}-{number}")


def commands():
    for param in blocks("sh", PAGES):
        for line in param.values[0].splitlines():
            # Other programs' lines may be parts of a longer one, with quotes that are still open.
            if Path(line.partition(" ")[0]).name == "misotune":
                words = shlex.split(line, comments=True)
                yield pytest.param(words[1:], id=f"{param.id}-{'-'.join(words[1:3])}")


# In docs/, a fence of `python` is a whole program; `py` marks a part of one.
@pytest.mark.parametrize("code", list(blocks("python", PAGES)))
def test_examples_run(code):
    with patch.dict(WEIGHTINGS):  # an example may add one of its own
        exec(compile(code, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("arguments", list(commands()))
def test_commands_and_their_options_are_there(arguments):
    command = typer.main.get_command(app)
    context = click.Context(command, info_name="misotune")
    while isinstance(command, typer.core.TyperGroup):
        # What is no subcommand goes to the unnamed form of the group (`prepare SOURCE`).
        name, arguments = (arguments[0], arguments[1:]) if arguments[0] in command.commands else ("source", arguments)
        command = command.commands[name]
    command.make_context(command.name, list(arguments), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_tests_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:src|tests|recipes|docs)/[\w./-]+)`", text))
    assert not [path for path in named if not (ROOT / path).exists()]
    assert not set(re.findall(r"`(test_[a-z_0-9]+)`", text)) - TESTS


def test_every_test_that_the_reliability_page_names_is_there():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py|…)::(\w+)`", page)
    assert len(named) > 30
    file = ""
    for path, name in named:
        file = file if path == "…" else path
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def values_in_tables(text):
    """The values that the rows `| key | value |` of a page name; several keys in a row stand beside as many values."""
    for keys, values in re.findall(r"^\| (`[a-z_0-9.`, ]+`) \| (`[^|]+`) \|", text, re.MULTILINE):
        yield from zip(re.findall("`(.*?)`", keys), re.findall("`(.*?)`", values), strict=True)


@pytest.mark.parametrize("name", ["llama3_crab", "mistral_crab", "llama3_r1"])
def test_the_recipes_page_compares_every_line_of_a_recipe_with_the_paper(name):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    resolved = load_recipe(find_recipe(name))
    values = {".".join(path): format_value(value) for path, value in leaves(resolved.recipe)}
    named = dict(values_in_tables(page.split(f"### {name}\n")[1].split("\n### ")[0]))
    assert named == {key: values[key] for key in named}
    assert named.keys() == {key for key, origin in resolved.origins.items() if origin != DEFAULT} - {"name", "seed"}
    silent = dict(values_in_tables(page.split("### What the paper says nothing of\n")[1]))
    assert silent == {key: values[key] for key in silent}
    assert not silent.keys() & named.keys()
