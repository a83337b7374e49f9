"""The command `misotune`: its verbs, and the one place where an error becomes a line and an exit code."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from misotune.cli import compare as compare_command
from misotune.cli import doctor as doctor_command
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
from misotune.cli.command import Command, Group
from misotune.errors import MisotuneError, ToldError
from misotune.training.ranks import child

# In the order of the work, which typer does not keep: it lists groups after commands.
_VERBS: dict[str, typer.Typer | Callable[..., None]] = {
    "prepare": prepare_command.app,
    "preview": preview_command.preview,
    "train": train_command.train,
    "launch": launch_command.app,
    "report": report_command.report,
    "eval": eval_command.evaluate,
    "compare": compare_command.compare,
    "export": export_command.export,
    "generate": generate_command.generate,
    "quickstart": quickstart_command.quickstart,
    "inspect": inspect_command.app,
    "recipe": recipe_command.app,
    "doctor": doctor_command.doctor,
}
# A paragraph is one line: rich breaks it where the terminal ends.
_EPILOG = "\n\n".join(
    (
        "Prepare, train, eval, export: each stage reads what the one before wrote. A first run: misotune quickstart. "
        "Is all here that it needs? misotune doctor.",
        "Exit codes: 0 done; 1 a stage failed; 2 the command or the recipe was wrong, and nothing was started; "
        "130 and 143 stopped by a signal (Ctrl-C, SIGTERM).",
        "--debug, before or after the verb, shows the traceback of an error. Colour is for terminals only; NO_COLOR=1 "
        "switches it off there too.",
    )
)


class _InOrder(Group):
    """The verbs in the order of the work."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=list(_VERBS).index)


app = typer.Typer(
    name="misotune",
    cls=_InOrder,
    help="Fine-tune open LLMs to follow complex instructions, with MISO attention.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _paragraphs(text: str | None) -> str:
    """Returns a docstring with a line for each paragraph: else rich breaks lines where the source did, too."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


for _name, _verb in _VERBS.items():
    if not isinstance(_verb, typer.Typer):
        app.command(_name, cls=Command, help=_paragraphs(_verb.__doc__))(_verb)
    elif _verb is prepare_command.app:  # its unnamed command says what it does
        app.add_typer(_verb, name=_name, help="Make a multi-input dataset out of instruction data.")
    else:
        app.add_typer(_verb, name=_name)


def _show_version(value: bool) -> None:
    if value:
        from misotune.packages import installed_version

        typer.echo(f"misotune {installed_version('misotune') or '(a source tree)'}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and stop."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; after the verb too."),
) -> None:
    """Fine-tune open LLMs to follow complex instructions, with MISO attention."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 a stage failed, 2 the command was wrong, 130 interrupted."""
    arguments, is_debug = _take_debug(sys.argv[1:] if arguments is None else arguments)
    child.follow_parent()
    try:
        app(arguments, prog_name="misotune")
    except MisotuneError as error:
        if is_debug:
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


def _take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Returns the arguments without `--debug`, which stands before or after the verb, and whether it was there."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    return [*kept, *arguments[end:]], len(kept) < end
