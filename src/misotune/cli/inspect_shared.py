"""What the commands of `misotune inspect` share: options, the model, progress, tables, and the command itself."""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from misotune.cli import completion
from misotune.cli.run_names import named_path
from misotune.errors import UsageError

if TYPE_CHECKING:
    from misotune.analysis.table import Table
    from misotune.evaluation.models import ModelSource

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run (its name in runs/, or its folder), a folder with a model or adapter, or a hub id.",
        autocompletion=completion.runs,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="auto (as the weights are stored), bfloat16 or float32. (default: float32 on a CPU, else auto)",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Do not use the network.")]

_RESULTS_ROOT = Path("inspect")
# They change what is printed, not what is found.
_NOT_REPEATED = ("as_json", "show")


def find_models(names: Sequence[str], *, offline: bool) -> list["ModelSource"]:
    """Returns the models that were named; run names stand for their folders.

    Raises:
        UsageError: One is a path with no model in it.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads this once, when it is imported below
    from misotune.evaluation.models import find_model

    return [find_model(named_path(name)) for name in names]


def result_folder(out: Path | None, sources: Sequence["ModelSource"], labels: Sequence[str], what: str) -> Path:
    """Returns `out`, else the folder of one run's or of all models' results of a kind.

    Raises:
        UsageError: It holds something else than an older result.
    """
    from misotune.analysis.result_folder import check_result_folder

    run = sources[0].run if len(sources) == 1 else None
    place = (run.path / "inspect" if run else _RESULTS_ROOT / "+".join(labels)) / what
    folder = place if out is None else out
    check_result_folder(folder, what)
    return folder


def check_data(data: Path | None, option: str, mode: str) -> None:
    """Makes sure that the data are there.

    Raises:
        UsageError: They are not; `option` is what the message calls them, `mode` how to prepare some.
    """
    if data is not None and not data.exists():
        raise UsageError(
            f"{option}{data}: no such file or folder; write a dataset: misotune prepare SOURCE --mode {mode}"
        )


def messages_console() -> Console:
    """Returns where progress is told, and makes the libraries silent there."""
    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    return Console(stderr=True, soft_wrap=True, highlight=False)


def load_model(path: str, dtype: str | None, console: Console) -> tuple[Any, Any]:
    """Returns the model of a folder or hub id, and its tokenizer.

    Args:
        path: A folder with a model or an adapter, or a hub id.
        dtype: `auto`, `bfloat16` or `float32`; None: float32 on a CPU, else as the weights are stored.
        console: Where it is said.
    """
    console.print(f"loading {path}", markup=False)
    import torch

    from misotune.evaluation.backends.chat_model import load_chat_model

    loaded = load_chat_model(path, dtype=dtype or ("auto" if torch.cuda.is_available() else "float32"))
    return loaded.model, loaded.tokenizer


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress | None]:
    """Yields bars on a terminal; None elsewhere, where lines are better."""
    if not console.is_terminal:
        yield None
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        yield progress


def repeat_command(context: typer.Context) -> str:
    """Returns the running command with the arguments and options that were given."""
    words = ["misotune", *context.command_path.split()[1:]]
    options: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name in _NOT_REPEATED:
            continue
        if parameter.param_type_name == "option":
            is_flag = isinstance(value, bool)
            options += [parameter.opts[0]] if is_flag else [parameter.opts[0], str(value)]
        else:
            words += map(str, value) if isinstance(value, list | tuple) else [str(value)]
    return shlex.join([*words, *options])


def print_json(result: Mapping[str, Any], folder: Path) -> None:
    """Prints a result and its folder, and nothing else."""
    content = {**result, "folder": str(folder)}
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def print_result(tables: Sequence["Table"], title: str, notes: Sequence[str], folder: Path) -> None:
    """Prints tables, then lines, then where the rest is.

    Args:
        tables: The first one bears the title too.
        title: Models, data and number of rows.
        notes: Lines.
        folder: The result's folder.
    """
    console = Console(soft_wrap=True, highlight=False)
    for at, table in enumerate(tables):
        heading = table.title if at else f"{table.title}: {title}"
        shown = RichTable(
            title=escape(heading), title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else None
        )
        for place, column in enumerate(table.columns):
            is_text = place in table.texts
            shown.add_column(escape(column), justify="left" if is_text else "right", no_wrap=not is_text)
        for row in table.rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
        console.print()
    for note in notes:
        console.print(note, markup=False)
    files = sorted(path.name for path in folder.iterdir())
    console.print(f"all of it, with pictures: {folder}/{{{','.join(files)}}}", markup=False)
    console.print(f"to be opened in a browser: {folder}/index.html", markup=False)
