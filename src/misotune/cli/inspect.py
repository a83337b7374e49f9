"""`misotune inspect`: looks into a model, measures and draws."""

import typer

from misotune.cli.command import Command, Group
from misotune.cli.inspect_attention import attention
from misotune.cli.inspect_dependency import dependency
from misotune.cli.inspect_dilution import dilution

app = typer.Typer(cls=Group, help="Look into a model: measure and draw.", no_args_is_help=True)
app.command("attention", cls=Command)(attention)
app.command("dependency", cls=Command)(dependency)
app.command("dilution", cls=Command)(dilution)
