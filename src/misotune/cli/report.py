"""`misotune report`: a run on one page."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from misotune.cli import completion
from misotune.cli.run_names import named_path, newest_run
from misotune.errors import RunError
from misotune.runs import RunFolder

if TYPE_CHECKING:
    from misotune.report.reading import RunRecord


def report(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="A run's folder or its name in runs/, also of a run that is still going. "
            "(default: the run that wrote metrics last)",
            autocompletion=completion.runs,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print where the page is and how far the run is as JSON.")
    ] = False,
) -> None:
    """Write a run's report.html again, from the other files of its folder.

    Training writes it too, about every half minute and at the end.
    """
    from misotune.report.page import write_report
    from misotune.report.reading import read_run

    if run is None:
        folder = newest_run()
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"the newest run: {folder.path}", markup=False)
    else:
        folder = RunFolder(Path(named_path(run)).expanduser())
    try:
        write_report(folder)
    except OSError as error:
        raise RunError(f"{folder.report} cannot be written ({error.strerror or error})") from error
    if as_json:
        sys.stdout.write(json.dumps(_to_json(folder, read_run(folder)), indent=2, ensure_ascii=False) + "\n")
    else:
        Console(soft_wrap=True, highlight=False).print(f"page: {folder.report}", markup=False)


def _to_json(folder: RunFolder, record: "RunRecord") -> dict[str, Any]:
    loss = record.last.get("loss")
    return {
        "page": str(folder.report),
        "run": str(folder.path),
        "is_finished": record.is_finished,
        "step": record.last.get("step", 0),
        "num_steps": record.num_steps,
        # JSON has no NaN.
        "loss": loss if isinstance(loss, int | float) and math.isfinite(loss) else None,
        "num_metrics": len(record.metrics),
        "num_events": len(record.events),
    }
