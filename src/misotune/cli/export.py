"""`misotune export`: a model as a plain Hugging Face checkpoint, proved; and the proof of one that is there."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from misotune.cli import completion
from misotune.cli.run_names import named_path
from misotune.errors import UsageError
from misotune.runs import newest_finished_run, run_at

if TYPE_CHECKING:
    from misotune.export.export import ExportReport
    from misotune.export.source import Source


def export(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="A run's folder or its name in runs/, RUN/checkpoints/step-N, or a folder with an adapter or a model. "
            "(default: the newest finished run)",
            autocompletion=completion.runs,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The checkpoint's folder. (default: exports/NAME)")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older export.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="float32, bfloat16 or float16. (default: as the weights are stored)"),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest weight file, as 2GB. (default: as they are; 5GB where merged)"),
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Export the LoRA adapter for peft, not merged.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload it after the proof; a new repository is private."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Export nothing; prove the checkpoint in DIR again."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was proved as JSON.")] = False,
) -> None:
    """Write a run's model as a plain Hugging Face checkpoint, and prove it.

    LoRA adapters are merged. The checkpoint is reopened without misotune and compared with the trained model;
    only then it gets its name.
    """
    messages = Console(stderr=True, soft_wrap=True, highlight=False)
    if check is not None:
        if run is not None or out is not None or push_to_hub is not None:
            raise UsageError("--check DIR goes alone; leave out RUN, OUT and --push-to-hub")
        _check(check, as_json=as_json)
        return
    source = _find_source(run, messages)

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    from misotune.export.export import ExportOptions, default_folder_of, export_source

    report = export_source(
        source,
        out or default_folder_of(source),
        options=ExportOptions(dtype, max_shard_size, adapter_only, push_to_hub),
        overwrite=overwrite,
        on_message=messages.print,
    )
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    else:
        _show_export(report, Console(soft_wrap=True, highlight=False))
    for found in report.against_base:
        if found.is_loss:
            messages.print(f"warning: against its base model, {found.finding()}", markup=False)


def _show_export(report: "ExportReport", console: Console) -> None:
    """Prints what was proved, where it lies and how to load it."""
    from misotune.export.card import load_snippet

    for line in report.sentences():
        console.print(f"proved: {line}", markup=False)
    console.print(f"exported: {report.path} ({report.size_bytes / 1e6:,.1f} MB), from {report.run}", markup=False)
    if report.pushed_to is not None:
        console.print(f"pushed: {report.pushed_to}", markup=False)
    if report.proof.num_adapted is not None:  # an adapter alone
        console.print("load it with peft: its README.md has the code", markup=False)
        return
    console.print("load it with transformers alone:", markup=False)
    for line in load_snippet(str(report.path)).splitlines():
        console.print(f"    {line}", markup=False)


def _check(folder: Path, *, as_json: bool) -> None:
    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    from misotune.export.check import check_export

    found = check_export(folder)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")
        return
    console = Console(soft_wrap=True, highlight=False)
    for line in found.checked:
        console.print(f"proved: {line}", markup=False)
    for line in found.not_checked:
        console.print(f"not checked: {line}", markup=False)
    console.print(f"checked: {folder}" + (f", exported from {found.exported}" if found.exported else ""), markup=False)


def _find_source(name: str | None, messages: Console) -> "Source":
    from misotune.export.source import find_source, source_of_run

    if name is None:
        run = newest_finished_run()
        messages.print(f"exporting the newest finished run: {run.path}", markup=False)
        return source_of_run(run)
    path = Path(named_path(name)).expanduser()
    return find_source(path) if path.is_dir() else source_of_run(run_at(path))
