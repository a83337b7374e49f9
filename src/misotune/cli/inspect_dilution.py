"""`misotune inspect dilution`: how the output's share of attention changes with the number of inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from misotune.analysis.dilution.continuations import Continuation


def dilution(
    context: typer.Context,
    model: Model,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="A prepared dataset or its rows as JSONL. (default: the starter set)"),
    ] = None,
    max_inputs: Annotated[int, typer.Option(metavar="N", min=2, help="Largest number of inputs n.")] = 16,
    repeat: Annotated[bool, typer.Option("--repeat", help="A row's first input n times, not n of its inputs.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Rows to measure.")] = 4,
    max_length: Annotated[
        int,
        typer.Option(metavar="N", min=16, help="Cut outputs where the longest pair exceeds so many tokens."),
    ] = 1024,
    generate: Annotated[
        bool, typer.Option("--generate", help="Also let the model write, to see whether it is still fluent.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=4, help="With --generate: longest text in tokens.")
    ] = 64,
    dtype: Dtype = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Result folder. (default: RUN/inspect/dilution or inspect/MODEL/dilution)"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, with every layer.")] = False,
    offline: Offline = False,
) -> None:
    """Measure how the output's share of attention changes with the number of inputs.

    Under the weightings vanilla, uniform and fid, in every layer; with a picture.
    """
    (source,) = find_models([model], offline=offline)
    from misotune.evaluation.models import label

    name = label(source.name)
    folder = result_folder(out, [source], [name], "dilution")
    messages = messages_console()
    from misotune.analysis.dilution.page import dilution_tables
    from misotune.analysis.dilution.study import DilutionSettings, study_dilution

    check_data(data, "--data ", "para")
    loaded, tokenizer = load_model(source.path, dtype, messages)
    settings = DilutionSettings(data, max_inputs, repeat, limit, max_length, generate, max_new_tokens)
    with _progress(messages) as (on_row, on_text):
        study = study_dilution(
            name, loaded, tokenizer, folder, settings, on_row=on_row, on_text=on_text, command=repeat_command(context)
        )
    if as_json:
        print_json(study.result, folder)
    else:
        print_result(dilution_tables(study.dilution, study.fluency), study.title, (), folder)


@contextmanager
def _progress(console: Console) -> Iterator[tuple[Callable[[int, int], None], Callable[["Continuation"], None]]]:
    """Yields callbacks for rows and texts."""

    def describe(text: "Continuation") -> str:
        return f"{text.row}, n = {text.num_inputs}, {text.weighting}: {text.num_tokens} tokens"

    with progress_bars(console) as bars:
        if bars is None:
            yield (
                lambda done, total: console.print(f"measured: row {done} of {total}"),
                lambda text: console.print(f"written: {describe(text)}", markup=False),
            )
            return
        bar = bars.add_task("rows measured", total=None)
        yield (
            lambda done, total: bars.update(bar, completed=done, total=total),
            lambda text: bars.update(bar, description=f"written: {describe(text)}"),
        )
