"""`misotune inspect attention`: where the response's attention goes, in one model or several."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import TaskID

from misotune.cli import completion
from misotune.cli.inspect_shared import (
    Dtype,
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


def attention(
    context: typer.Context,
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
    dtype: Dtype = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Result folder. (default: RUN/inspect/attention or inspect/MODEL/attention)"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, with every layer and head.")
    ] = False,
    offline: Offline = False,
) -> None:
    """Measure what share of the response's attention goes to each part of the prompt.

    Each constraint, the instruction, the rest of the prompt, the system prompt and the response itself; in every layer
    and head, split by whether the constraint was met; with a picture.
    """
    sources = find_models(models, offline=offline)
    from misotune.evaluation.models import label

    named = [source.name for source in sources]
    names = _names(named, [label(name) for name in named])
    folder = result_folder(out, sources, names, "attention")
    messages = messages_console()
    from misotune.analysis.attention.page import attention_tables, left_out_notes
    from misotune.analysis.attention.study import AttentionSettings, study_attention

    check_data(data, "--data ", "para")

    def load(index: int) -> tuple[Any, Any]:
        return load_model(sources[index].path, dtype, messages)

    settings = AttentionSettings(data, limit, max_length, generate, max_new_tokens)
    with _progress(messages, limit) as on_row:
        study = study_attention(names, load, folder, settings, on_row=on_row, command=repeat_command(context))
    if as_json:
        print_json(study.result, folder)
    else:
        print_result(attention_tables(study.models), study.title, left_out_notes(study.result["num_left_out"]), folder)


def _names(models: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The models' short names, or as they were named where two of the short ones are the same."""
    if len(set(labels)) == len(labels):
        return list(labels)
    return [model.strip("/").replace("/", "--") for model in models]


@contextmanager
def _progress(console: Console, limit: int) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields a callback for rows, with a bar for each model."""
    with progress_bars(console) as progress:
        if progress is None:
            yield lambda name, done, total: console.print(
                f"measured: {name}, row {done} of {'at most ' if total is None else ''}{total or limit}", markup=False
            )
            return
        bars: dict[str, TaskID] = {}

        def on_row(name: str, done: int, total: int | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(f"{name}: rows measured", total=total or limit)
            progress.update(bars[name], completed=done)

        yield on_row
