"""The command `misotune`: its verbs, and the one place where an error becomes a line and an exit code."""

import sys
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.text import Text

from misotune.cli import compare as compare_command
from misotune.cli import eval as eval_command
from misotune.cli import export as export_command
from misotune.cli import generate as generate_command
from misotune.cli import inspect as inspect_command
from misotune.cli import launch as launch_command
from misotune.cli import prepare as prepare_command
from misotune.cli import preview as preview_command
from misotune.cli import quickstart as quickstart_command
from misotune.cli import recipe as recipe_command
from misotune.cli import report as report_command
from misotune.cli import train as train_command
from misotune.errors import MisotuneError, ToldError
from misotune.training.ranks import child

app = typer.Typer(
    name="misotune",
    help="Fine-tune open LLMs to follow complex instructions, with MISO attention.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(prepare_command.app, name="prepare")
app.command("preview")(preview_command.preview)
app.command("train")(train_command.train)
app.add_typer(launch_command.app, name="launch")
app.command("report")(report_command.report)
app.command("eval")(eval_command.evaluate)
app.command("compare")(compare_command.compare)
app.command("export")(export_command.export)
app.command("generate")(generate_command.generate)
app.command("quickstart")(quickstart_command.quickstart)
app.add_typer(inspect_command.app, name="inspect")
app.add_typer(recipe_command.app, name="recipe")


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"misotune {version('misotune')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and stop."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
) -> None:
    """Prepare -> train -> eval -> export: each stage reads what the one before wrote."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 a stage failed, 2 the command was wrong, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    child.follow_parent()
    try:
        app(arguments, prog_name="misotune")
    except MisotuneError as error:
        if "--debug" in arguments:
            raise
        if not child.hand_over(str(error), error.exit_code) and not isinstance(
            error, ToldError
        ):  # the parent prints what its ranks all met once
            Console(stderr=True, soft_wrap=True, highlight=False).print(
                Text.assemble((f"{child.rank_name()}error: ", "bold red"), str(error))
            )
        sys.exit(error.exit_code)
    except Exception as error:
        if not child.hand_over_trace(error):
            raise
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        sys.exit(130)
