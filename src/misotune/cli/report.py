"""`misotune report`: a run on one page."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from misotune.errors import RunError
from misotune.runs import RunFolder


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, of a run that goes on too.", show_default=False)
    ],
) -> None:
    """Write a run's report.html again, from the other files of its folder.

    Training writes it too, about every half minute and at the end.
    """
    from misotune.report.page import write_report

    folder = RunFolder(run)
    try:
        write_report(folder)
    except OSError as error:
        raise RunError(f"{folder.report} cannot be written ({error.strerror or error})") from error
    Console(soft_wrap=True, highlight=False).print(f"page: {folder.report}", markup=False)
