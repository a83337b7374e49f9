"""`misotune inspect dependency`: how much the responses of a dataset depend on what the user gave."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from misotune.cli.inspect_shared import (
    Dtype,
    Model,
    Offline,
    check_data,
    find_models,
    load_model,
    messages_console,
    print_json,
    print_result,
    progress_bars,
    repeat_command,
    result_folder,
)

_TEXT_WIDTH = 60
_SAY_EVERY_ROWS = 50


def dependency(
    context: typer.Context,
    model: Model,
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
    dtype: Dtype = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Result folder. (default: RUN/inspect/dependency or inspect/MODEL/dependency)"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, with every score.")] = False,
    offline: Offline = False,
) -> None:
    """Score how much each response of a dataset depends on the user's text, by the model's attention.

    The score is the mean over the response's tokens of the largest head's attention to the user's tokens.
    """
    (source,) = find_models([model], offline=offline)
    from misotune.evaluation.models import label

    name = label(source.name)
    folder = result_folder(out, [source], [name], "dependency")
    messages = messages_console()
    from misotune.analysis.dependency.page import histogram_table, ranked_tables, summary
    from misotune.analysis.dependency.study import DependencySettings, study_dependency
    from misotune.analysis.dependency.write import check_target

    check_data(data, "", "sft")
    if write is not None:
        check_target(data, write)
    loaded, tokenizer = load_model(source.path, dtype, messages)
    settings = DependencySettings(data, layers, threshold, limit, max_length, write)
    with _progress(messages) as on_row:
        study = study_dependency(
            name, loaded, tokenizer, folder, settings, on_row=on_row, command=repeat_command(context)
        )
    if as_json:
        print_json(study.result, folder)
        return
    found = study.dependency
    tables = [histogram_table(found), *ranked_tables(found, show, _TEXT_WIDTH)]
    written = [] if write is None else [f"the dataset with its scores: {write}"]
    print_result(tables, study.title, [summary(found), *written], folder)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback for rows: some lines where there is no terminal."""

    def say(done: int, total: int) -> None:
        if done % _SAY_EVERY_ROWS == 0 or done == total:
            console.print(f"scored: row {done} of {total}")

    with progress_bars(console) as bars:
        if bars is None:
            yield say
            return
        bar = bars.add_task("rows scored", total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
