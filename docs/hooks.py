"""Pages made from the code as they are built: the recipe's keys, the commands' help, the shipped recipes.

A page asks with a line `<!-- keys miso -->`, `<!-- help prepare -->` or `<!-- recipe quickstart -->`.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from misotune.recipe.loading import shipped_recipes
from misotune.recipe.schema import SECTIONS, Recipe
from misotune.recipe.wording import allowed_values
from misotune.recipe.yaml_text import format_value

_REQUEST = re.compile(r"^<!-- (?P<what>keys|help|recipe) ?(?P<name>.*?) -->$", re.MULTILINE)
_HELP_COLUMNS = "88"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns the page with each request replaced by what it asks for."""
    makers = {"keys": keys_table, "help": command_help, "recipe": recipe_text}
    return _REQUEST.sub(lambda match: makers[match["what"]](match["name"]), markdown)


def keys_table(section: str) -> str:
    """Returns a table of a section's keys; of the recipe's own keys where `section` is empty."""
    model = SECTIONS[section] if section else Recipe
    lines = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in model.model_fields.items():
        if not section and key in SECTIONS:
            continue
        path = (section, key) if section else (key,)
        default = "required" if field.is_required() else f"`{format_value(field.default)}`"
        lines.append(f"| `{key}` | {_cell(allowed_values(path))} | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines)


@cache
def command_help(command: str) -> str:
    """Returns what `misotune COMMAND --help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "misotune", *command.split(), "--help"],
        env={**os.environ, "COLUMNS": _HELP_COLUMNS, "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
    return f"```text\n{lines}\n```"


def recipe_text(name: str) -> str:
    """Returns the text of a shipped recipe."""
    paths: dict[str, Path] = {path.stem: path for path in shipped_recipes()}
    return f"```yaml\n{paths[name].read_text(encoding='utf-8').strip()}\n```"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
