"""`misotune inspect attention`: where the response's attention goes, in one model or several."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from misotune.cli import completion
from misotune.cli.inspect_model import load_model
from misotune.cli.run_names import named_path
from misotune.errors import UsageError

if TYPE_CHECKING:
    from misotune.analysis.attention_study import AttentionStudy

_RESULTS_ROOT = Path("inspect")


def attention(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Each a run or its name in runs/, a folder with a model or a LoRA adapter, or a hub id.",
            autocompletion=completion.runs,
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET",
            help="A prepared dataset, its rows as JSONL, or JSONL with instruction, constraints and output. "
            "(default: the starter set)",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Rows to measure.")] = 8,
    max_length: Annotated[
        int, typer.Option(min=16, metavar="N", help="Cut responses where prompt and response exceed so many tokens.")
    ] = 4096,
    generate: Annotated[
        bool, typer.Option("--generate", help="Each model reads its own response, not the row's.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --generate: longest response in tokens.")
    ] = 256,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="auto (as the weights are stored), bfloat16 or float32. (default: float32 on a CPU, else auto)",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Result folder. (default: RUN/inspect/attention or inspect/MODEL/attention)"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, with every layer and head.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not use the network.")] = False,
) -> None:
    """Measure what share of the response's attention goes to each part of the prompt.

    Each constraint, the instruction, the rest of the prompt, the system prompt and the response itself; in every layer
    and head, split by whether the constraint was met; with a picture.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads this once, when it is imported below

    from misotune.evaluation.models import find_model, label

    models = [named_path(model) for model in models]
    sources = [find_model(model) for model in models]
    names = _names(models, [label(model) for model in models])
    run = sources[0].run if len(sources) == 1 else None
    folder = out or (run.path / "inspect" if run else _RESULTS_ROOT / "+".join(names)) / "attention"
    messages = Console(stderr=True, soft_wrap=True, highlight=False)

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    from misotune.analysis.attention_results import check_attention_folder
    from misotune.analysis.attention_study import AttentionSettings, study_attention

    check_attention_folder(folder)
    if data is not None and not data.exists():
        raise UsageError(f"--data {data}: no such file or folder; write a dataset: misotune prepare SOURCE --mode para")

    def load(index: int) -> tuple[Any, Any]:
        messages.print(f"loading {sources[index].path}", markup=False)
        return load_model(sources[index].path, dtype)

    settings = AttentionSettings(data, limit, max_length, generate, max_new_tokens)
    with _progress(messages, limit) as on_row:
        study = study_attention(names, load, folder, settings, on_row=on_row)
    if as_json:
        content = {**study.result, "folder": str(folder)}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        _show(study, Console(soft_wrap=True, highlight=False))


def _names(models: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The models' short names, or as they were named where two of the short ones are the same."""
    if len(set(labels)) == len(labels):
        return list(labels)
    return [model.strip("/").replace("/", "--") for model in models]


@contextmanager
def _progress(console: Console, limit: int) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields a callback for rows: a bar on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield lambda name, done, total: console.print(
            f"measured: {name}, row {done} of {'at most ' if total is None else ''}{total or limit}", markup=False
        )
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bars: dict[str, Any] = {}

        def on_row(name: str, done: int, total: int | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(f"{name}: rows measured", total=total or limit)
            progress.update(bars[name], completed=done)

        yield on_row


def _show(study: "AttentionStudy", console: Console) -> None:
    tables = [_parts_table(study)]
    if any(model.has_constraints for model in study.models):
        tables.append(_verdict_table(study))
    for table in tables:
        table.box = box.SIMPLE_HEAD if console.is_terminal else None
        console.print(table)
        console.print()
    num_left_out = study.result["num_left_out"]
    if num_left_out:
        rows = "row was" if num_left_out == 1 else "rows were"
        console.print(f"{num_left_out} {rows} left out: too long, or a constraint not found in the prompt's text")
    files = sorted(path.name for path in study.folder.iterdir())
    console.print(f"every layer and head, and the picture: {study.folder}/{{{','.join(files)}}}", markup=False)


def _parts_table(study: "AttentionStudy") -> Table:
    title = f"shares of the response's attention in percent: {escape(study.title)}"
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    for model in study.models:
        table.add_column(escape(model.name), justify="right")
        table.add_column("tokens", justify="right")
    for part in study.result["parts"]:
        cells = ((f"{100 * model.mean[part]:.1f}", f"{model.num_tokens[part]:.0f}") for model in study.models)
        table.add_row(part, *(cell for pair in cells for cell in pair))
    return table


def _verdict_table(study: "AttentionStudy") -> Table:
    table = Table(title="one constraint's share in percent, by verdict on the response", title_justify="left")
    for heading in ("model", "verdict", "constraints", "share", "tokens"):
        table.add_column(heading, justify="left" if heading in ("model", "verdict") else "right")
    for model in study.models:
        for verdict, name in ((True, "met"), (False, "not met"), (None, "not verified")):
            found = model.by_verdict(verdict)
            if found.shares is not None:
                share = f"{100 * found.shares.mean().item():.2f}"
                table.add_row(escape(model.name), name, str(found.num_constraints), share, f"{found.num_tokens:.0f}")
    return table
