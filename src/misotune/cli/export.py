"""`misotune export`: a run's model as a plain Hugging Face checkpoint."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from misotune.runs import RUNS_ROOT, RunFolder, newest_finished_run, run_at

if TYPE_CHECKING:
    from misotune.export.export import ExportReport


def export(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A run's folder, or its name in runs/. (default: the newest finished run)"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="The checkpoint's folder. (default: exports/RUN)")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older export.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was proved as JSON.")] = False,
) -> None:
    """Write a run's model as a plain Hugging Face checkpoint, and prove it.

    LoRA adapters are merged. The checkpoint is reopened without misotune and compared with the trained model;
    only then it gets its name.
    """
    messages = Console(stderr=True, soft_wrap=True, highlight=False)
    found = _find_run(run, messages)

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    from misotune.export.export import default_folder, export_run

    report = export_run(found, out or default_folder(found), overwrite=overwrite, on_message=messages.print)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    else:
        show_export(report, Console(soft_wrap=True, highlight=False))
    for found in report.against_base:
        if found.is_loss:
            messages.print(f"warning: against its base model, {found.finding()}", markup=False)


def show_export(report: "ExportReport", console: Console) -> None:
    """Prints what was proved, where it lies and how to load it."""
    from misotune.export.card import load_snippet, proof_lines

    for line in proof_lines(report.proof, report.merge):
        console.print(f"proved: {line}", markup=False)
    console.print(f"exported: {report.path} ({report.size_bytes / 1e6:,.1f} MB), from {report.run}", markup=False)
    console.print("load it with transformers alone:", markup=False)
    for line in load_snippet(str(report.path)).splitlines():
        console.print(f"    {line}", markup=False)


def _find_run(name: str | None, messages: Console) -> RunFolder:
    if name is None:
        run = newest_finished_run()
        messages.print(f"exporting the newest finished run: {run.path}", markup=False)
        return run
    path = Path(name).expanduser()
    return run_at(path if path.is_dir() or not (RUNS_ROOT / name).is_dir() else RUNS_ROOT / name)
