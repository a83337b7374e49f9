"""`misotune preview`: rows of a prepared dataset as training will see them."""

import difflib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from misotune.cli import completion
from misotune.cli.run_names import named_path
from misotune.errors import UsageError
from misotune.samples import MODES

if TYPE_CHECKING:
    from misotune.data.dataset import Dataset
    from misotune.preview.page import Preview
    from misotune.preview.reading import Encoded, Reading
    from misotune.preview.rows import RowView
    from misotune.recipe.schema import Recipe
    from misotune.samples import Sample
    from misotune.training.model import ModelSource

_DEFAULT_RECIPE = "quickstart"
_ROWS_ON_TERMINAL, _ROWS_ON_PAGE = 2, 10
_MEASURED_ROWS = 1000
_PLAIN_PROGRESS_ROWS = 10_000

_OnProgress = Callable[[int, int], None]


def preview(
    dataset: Annotated[
        Path | None,
        typer.Argument(metavar="DATASET", help="A prepared dataset, or its rows as JSONL. (default: the recipe's)"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Whose tokenizer: a run (its name in runs/, or its folder), a folder with a model, or a hub id. "
            "(default: the recipe's, or quickstart's)",
            autocompletion=completion.runs,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Model, mode, inputs, positions and limits of this recipe, by file or name.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help=f"How training takes inputs: {', '.join(MODES)}. (default: the recipe's, or the dataset's)",
        ),
    ] = None,
    row: Annotated[list[str] | None, typer.Option(metavar="ID", help="Show this row; may be repeated.")] = None,
    worst: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Show the N longest, with fewest trained tokens, and least sure rows."),
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Show the first so many rows. (default: 2, on an HTML page 10)"),
    ] = None,
    measure: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Rows that the statistics are of, drawn by seed if there are more; 0: all."
        ),
    ] = _MEASURED_ROWS,
    full: Annotated[bool, typer.Option("--full", help="Show long texts whole.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one self-contained HTML page.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws the rows that are measured.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows, statistics and account as JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not use the network.")] = False,
) -> None:
    """Show rows as training will see them: tokens, positions, trained tokens, who attends to whom."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads this once, when it is imported below
    if html is not None:
        _check_page(html)
    settings = _load_recipe(recipe, mode)
    path = dataset or (Path(settings.data.path) if settings else None)
    if path is None:
        raise UsageError("name a dataset, or a recipe that does: misotune preview data/NAME, or --recipe RECIPE")

    from misotune.data.dataset import open_dataset

    opened = open_dataset(path)
    if not len(opened):
        raise UsageError(f"{path}: the dataset has no rows; prepare it again")

    from misotune.cli.libraries import quiet_libraries

    source = _model_source(model, settings)
    quiet_libraries()
    reading = _reading(source, settings, mode or opened.manifest.get("mode"), path)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    number = (0 if row or worst else _ROWS_ON_PAGE if html else _ROWS_ON_TERMINAL) if num is None else num

    from misotune.preview.choice import draw_rows
    from misotune.preview.page import Preview
    from misotune.preview.statistics import account_lines
    from misotune.preview.statistics import measure as measure_rows

    shown = _shown_rows(opened, reading, row or [], worst, number, errors)
    with _progress("rows measured", errors) as on_progress:
        drawn = draw_rows(opened, measure or len(opened), seed, on_progress)
        found = measure_rows(drawn, len(opened), reading)
    made = Preview(
        dataset=str(path),
        model=source.name,
        settings=_describe(reading, recipe),
        rows=shown,
        statistics=found,
        account=account_lines(opened.manifest.get("account", {})),
    )
    _show(made, html=html, full=full, as_json=as_json)


def _check_page(html: Path) -> None:
    if html.is_dir():
        raise UsageError(f"--html {html}: is a folder; name a file in it")
    if not html.parent.is_dir():
        raise UsageError(f"--html {html}: there is no folder {html.parent}; make it first")


def _load_recipe(name: str | None, mode: str | None) -> "Recipe | None":
    if mode is not None and mode not in MODES:
        near = difflib.get_close_matches(mode, MODES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"--mode {mode!r}: {hint}allowed are {', '.join(MODES)}")
    if name is None:
        return None
    from misotune.recipe.loading import find_recipe, load_recipe

    return load_recipe(find_recipe(name), [f"miso.mode={mode}"] if mode else []).recipe


def _model_source(model: str | None, recipe: "Recipe | None") -> "ModelSource":
    """Returns whose tokenizer and template are used: the named model's, the recipe's, or the quickstart's."""
    from misotune.evaluation.models import find_model

    template = recipe.model.chat_template if recipe else None
    if model is None and recipe is None:
        from misotune.recipe.loading import find_recipe, load_recipe

        model = load_recipe(find_recipe(_DEFAULT_RECIPE)).recipe.model.name
        if not Path(model).is_dir():
            raise UsageError(
                f"no model named, and the quickstart's is not in {model}; "
                "name whose tokenizer to use with --model MODEL or --recipe RECIPE"
            )
    path = find_model(named_path(model)).path if model else None

    from misotune.training.model import ModelSource

    if path is not None:
        return ModelSource(path, None, template)
    assert recipe is not None
    return ModelSource(recipe.model.name, recipe.model.revision, template)


def _reading(source: "ModelSource", recipe: "Recipe | None", mode: str | None, data: Path) -> "Reading":
    """Returns how training reads rows: by the recipe, or else by its defaults without limits on lengths."""
    from misotune.layout import Chunking
    from misotune.preview.reading import Reading
    from misotune.recipe.schema import MisoSection
    from misotune.training.added_token import load_template_for
    from misotune.training.shards import Limits, RowEncoder

    # Rows that were prepared for flat are pairs already, one input each; a file written by hand names no mode.
    chosen: Any = mode if mode in MODES and mode != "flat" else "para"
    miso = recipe.miso if recipe else MisoSection(mode=chosen)
    template, _ = load_template_for(source, data)
    chunking = None
    if miso.mode == "succ":
        bos = template.tokenizer.bos_token_id
        chunking = Chunking(miso.chunks, recipe.seed if recipe else 0, miso.chunk_prefix, bos)
    no_limits = Limits(sys.maxsize, "drop")
    limits = (
        Limits(recipe.data.max_length, recipe.data.too_long, recipe.data.max_sample_length) if recipe else no_limits
    )
    return Reading(
        template=template,
        mode=miso.mode,
        roles=miso.inputs,
        positions=miso.chosen_positions,
        encode=_encode(RowEncoder(template, miso.mode, miso.inputs, limits, chunking)),
        encode_whole=_encode(RowEncoder(template, miso.mode, miso.inputs, no_limits, chunking)),
        weighting=miso.weighting,
        shares={**miso.weights},
        chunking=chunking,
    )


def _encode(encoder: Any) -> "Callable[[Sequence[Sample]], Encoded]":
    from misotune.preview.reading import Encoded

    def encode(rows: "Sequence[Sample]") -> "Encoded":
        samples, account = encoder.encode(rows, 0, len(rows))
        return Encoded(samples, account.dropped, account.cut)

    return encode


def _describe(reading: "Reading", recipe: str | None) -> dict[str, str]:
    settings = {"recipe": recipe} if recipe else {}
    mode = f"{reading.mode} (chunks as drawn for the first epoch)" if reading.chunking else reading.mode
    settings |= {"mode": mode, "positions": reading.positions, "weighting": reading.weighting}
    return settings


def _shown_rows(
    opened: "Dataset", reading: "Reading", ids: Sequence[str], worst: int | None, number: int, errors: Console
) -> "list[RowView]":
    from misotune.preview.choice import find_rows, first_rows, worst_rows
    from misotune.preview.rows import view_rows

    shown = [view_rows(rows, reading, f"row {i + 1}") for i, rows in find_rows(opened, ids)] if ids else []
    shown += [view_rows(rows, reading, f"row {i + 1}") for i, rows in first_rows(opened, number)]
    if worst:
        with _progress("rows compared", errors) as on_progress:
            found = worst_rows(opened, worst, reading, on_progress)
        shown += [view_rows(rows, reading, f"row {i + 1}, {label}") for i, rows, label in found]
    return shown


@contextmanager
def _progress(what: str, console: Console) -> Iterator[_OnProgress]:
    """Yields a callback for rows done: a bar on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:

        def on_rows(done: int, total: int) -> None:
            if done % _PLAIN_PROGRESS_ROWS == 0:
                console.print(f"{what}: {done:,} of {total:,}")

        yield on_rows
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _show(made: "Preview", *, html: Path | None, full: bool, as_json: bool) -> None:
    from misotune.cli.preview_terminal import Lengths, print_preview, print_statistics

    # Rows may hold characters that the terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if html is not None:
        from misotune.preview.html import write_page

        write_page(made, html, full=full)
    if as_json:
        typer.echo(json.dumps(made.to_dict() | ({"page": str(html)} if html else {}), ensure_ascii=False))
        return
    console = Console(highlight=False)
    if html is None:
        print_preview(made, console, None if full else Lengths())
        return
    print_statistics(made, console)
    console.print(f"\npage with {len(made.rows)} rows: {html}", markup=False, soft_wrap=True)
