"""`misotune recipe`: a recipe resolved, and the schema of recipes."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from misotune.cli import completion
from misotune.cli.command import Command, Group

if TYPE_CHECKING:
    from misotune.recipe.resolved import ResolvedRecipe

app = typer.Typer(cls=Group, help="Show recipes, and their schema for editors.", no_args_is_help=True)


@app.command("show", cls=Command)
def show_recipe(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A recipe file, or the name of a shipped one.", autocompletion=completion.recipes
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values in place of the recipe's, as train.max_steps=20."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the values and their origins as JSON.")] = False,
) -> None:
    """Show a recipe with overrides and defaults, and where each value came from."""
    from misotune.recipe.loading import find_recipe, load_recipe
    from misotune.recipe.resolved import dump

    resolved = load_recipe(find_recipe(recipe), overrides or [])
    console = Console(soft_wrap=True, highlight=False)
    if as_json:
        values = resolved.recipe.model_dump(mode="json")
        typer.echo(json.dumps({"recipe": values, "origins": dict(resolved.origins)}, indent=2))
    elif console.is_terminal:
        console.print(paint(resolved))
    else:
        typer.echo(dump(resolved), nl=False)


@app.command("schema", cls=Command)
def show_schema() -> None:
    """Print the JSON schema of a recipe (draft 2020-12), for completion and checks in editors."""
    from misotune.recipe.schema import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2))


def paint(resolved: "ResolvedRecipe") -> Text:
    """Returns the same text as `dump`, in colour: defaults are dim, overrides stand out."""
    from misotune.recipe.resolved import DEFAULT, list_lines, origin_column

    lines = list_lines(resolved)
    column = origin_column(lines)
    page = Text()
    for line in lines:
        style = "dim" if line.origin == DEFAULT else "bold yellow" if line.origin.startswith("flag ") else ""
        page.append("  " * line.depth)
        page.append(f"{line.key}:", style="cyan" if line.origin else "bold cyan")
        if line.origin:
            page.append(f" {line.value}".ljust(column - 2 * line.depth - len(line.key) - 1), style=style)
            page.append(f"  # {line.origin}", style="dim green")
        page.append("\n")
    page.rstrip()
    return page
