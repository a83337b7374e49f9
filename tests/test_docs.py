"""The documentation says what is true of the code: its examples run, and what it names is there."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from misotune.cli.main import app

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
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "misotune":
                yield pytest.param(words[1:], id=f"{param.id}-{'-'.join(words[1:3])}")


# In docs/, a fence of `python` is a whole program; `py` marks a part of one.
@pytest.mark.parametrize("code", list(blocks("python", PAGES)))
def test_examples_run(code):
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
