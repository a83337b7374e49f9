"""`misotune inspect dependency`: how much the responses of a dataset depend on what the user gave."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from misotune.analysis.dependency_study import DependencyStudy
    from misotune.analysis.dependency_table import ScoredResponse

_RESULTS_ROOT = Path("inspect")
_BAR_WIDTH = 40
_TEXT_WIDTH = 60
_SAY_EVERY_ROWS = 50


def dependency(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run or its name in runs/, a folder with a model or a LoRA adapter, or a hub id.",
            autocompletion=completion.runs,
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="A prepared dataset or its rows as JSONL. (default: the starter set)"),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Layers, from 1, as 8,20 or all; the score is their mean. (default: one at 15/22 of the depth)",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="A response above it depends on the context.")
    ] = 0.6,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first so many rows.")] = None,
    max_length: Annotated[int, typer.Option(min=16, metavar="N", help="Cut rows behind so many tokens.")] = 2048,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the dataset with the scores as columns: a folder (DATA itself, too), or a .jsonl file.",
        ),
    ] = None,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Most and least dependent responses to print.")] = 5,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="auto (as the weights are stored), bfloat16 or float32. (default: float32 on a CPU, else auto)",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Result folder. (default: RUN/inspect/dependency or inspect/MODEL/dependency)"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, with every score.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not use the network.")] = False,
) -> None:
    """Score how much each response of a dataset depends on the user's text, by the model's attention.

    The score is the mean over the response's tokens of the largest head's attention to the user's tokens.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads this once, when it is imported below

    from misotune.evaluation.models import find_model, label

    source = find_model(named_path(model))
    folder = out or (source.run.path / "inspect" if source.run else _RESULTS_ROOT / label(model)) / "dependency"
    messages = Console(stderr=True, soft_wrap=True, highlight=False)

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    from misotune.analysis.dependency_results import check_result_folder
    from misotune.analysis.dependency_study import DependencySettings, study_dependency
    from misotune.analysis.dependency_write import check_target

    check_result_folder(folder)
    if data is not None and not data.exists():
        raise UsageError(f"{data}: no such file or folder; write a dataset: misotune prepare SOURCE --mode sft")
    if write is not None:
        check_target(data, write)
    messages.print(f"loading {source.path}", markup=False)
    loaded, tokenizer = load_model(source.path, dtype)
    settings = DependencySettings(data, layers, threshold, limit, max_length, write)
    with _progress(messages) as on_row:
        study = study_dependency(label(model), loaded, tokenizer, folder, settings, on_row=on_row)
    if as_json:
        content = {**study.result, "folder": str(folder)}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        _show(study, write, show, Console(soft_wrap=True, highlight=False))


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback for rows: a bar on a terminal, some lines elsewhere."""
    if not console.is_terminal:

        def say(done: int, total: int) -> None:
            if done % _SAY_EVERY_ROWS == 0 or done == total:
                console.print(f"scored: row {done} of {total}")

        yield say
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("rows scored", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _show(study: "DependencyStudy", write: Path | None, num_shown: int, console: Console) -> None:
    ranked = study.dependency.ranked()
    most, least = ranked[:num_shown], ranked[::-1][:num_shown]
    tables = [_histogram_table(study)]
    tables += [_rows_table(f"the {name} dependent", rows) for name, rows in (("most", most), ("least", least)) if rows]
    for table in tables:
        table.box = box.SIMPLE_HEAD if console.is_terminal else None
        console.print(table)
        console.print()
    console.print(_summary(study))
    files = sorted(path.name for path in study.folder.iterdir())
    console.print(f"every score, and the picture: {study.folder}/{{{','.join(files)}}}", markup=False)
    if write is not None:
        console.print(f"the dataset with its scores: {write}", markup=False)


def _histogram_table(study: "DependencyStudy") -> Table:
    from misotune.analysis.dependency_plots import layers_in_words

    where = layers_in_words(study.dependency.layers)
    table = Table(title=f"dependency scores, {where}: {escape(study.title)}", title_justify="left")
    table.add_column("score")
    table.add_column("responses", justify="right")
    table.add_column("")
    counts = study.result["histogram"]["counts"]
    used = [i for i, count in enumerate(counts) if count]
    for i in range(used[0], used[-1] + 1):
        low, high = i / len(counts), (i + 1) / len(counts)
        table.add_row(f"{low:.2f}-{high:.2f}", str(counts[i]), "#" * round(_BAR_WIDTH * counts[i] / max(counts)))
    return table


def _rows_table(title: str, rows: "Sequence[ScoredResponse]") -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("score", "row", "response", "tokens", "user's"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("the user's text")
    for found in rows:
        text = " ".join(found.text.split())
        short = text if len(text) <= _TEXT_WIDTH else f"{text[: _TEXT_WIDTH - 3]}..."
        numbers = (found.row + 1, found.turn, found.num_tokens, found.num_user_tokens)
        table.add_row(f"{found.score:.3f}", *map(str, numbers), escape(short))
    return table


def _summary(study: "DependencyStudy") -> str:
    found, result = study.dependency, study.result
    left_out = f"; {found.num_left_out} of {found.num_rows} rows left out" if found.num_left_out else ""
    num_cut = sum(response.is_cut for response in found.responses)
    cut = f"; {num_cut} cut by --max-length" if num_cut else ""
    return (
        f"{len(found.responses)} responses: mean {result['mean']:.3f}, median {result['median']:.3f}, "
        f"{100 * found.share_above:.1f} % above {found.threshold:g}{left_out}{cut}"
    )
