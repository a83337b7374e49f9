"""`misotune quickstart`: the whole job on the embedded default, in minutes, on a laptop's CPU."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from misotune.evaluation.scores import Scores
    from misotune.recipe.resolved import ResolvedRecipe
    from misotune.report.against_base import AgainstBase
    from misotune.runs import RunFolder

RECIPE = "quickstart"
_MAX_NEW_TOKENS = 224


@dataclass(frozen=True, slots=True)
class _Results:
    """What the table at the end shows."""

    resolved: "ResolvedRecipe"
    run: "RunFolder"
    export: Path
    before: "Scores"
    after: "Scores"
    change: "AgainstBase | None"
    seconds: float


def quickstart(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values in place of the recipe's, as miso.mode=sft."),
    ] = None,
) -> None:
    """Prepare, train, evaluate and export on the embedded default: a 135M model and the starter data.

    Everything is written below this folder: models/, data/, runs/quickstart, exports/quickstart. A later call
    replaces the run and the export.
    """
    from misotune.recipe.loading import find_recipe, load_recipe

    started = time.monotonic()
    resolved = load_recipe(find_recipe(RECIPE), overrides or [])
    console = Console(soft_wrap=True, highlight=False)

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    model = Path(resolved.recipe.model.name)
    _step(console, 1, "model", f"SmolLM2-135M-Instruct in {model}")
    _fetch_model(model, console)
    _step(console, 2, "prepare", f"the starter data in {resolved.recipe.data.path}")
    _prepare(Path(resolved.recipe.data.path), console)
    _step(console, 3, "eval", "the model before training, on the starter's held-out prompts")
    # Both in the format of training, whichever the base model is stored in: only training is compared.
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[resolved.recipe.train.precision]
    before = _evaluate(resolved.recipe.model.name, Path("scores") / model.name / "starter", dtype, console)
    _step(console, 4, "train", f"{resolved.recipe.miso.mode} by recipe {RECIPE}")
    run = _train(resolved, console)
    _step(console, 5, "eval", "the trained model, on the same prompts")
    after = _evaluate(str(run.path), None, dtype, console)
    change = _against_base(run, before)
    _step(console, 6, "export", "a plain Hugging Face checkpoint")
    export = _export(run, console)
    _show(_Results(resolved, run, export, before, after, change, time.monotonic() - started), console)


def _step(console: Console, number: int, verb: str, what: str) -> None:
    console.print(f"\n[bold]{number}/6 {verb}[/bold]  {what}")


def _fetch_model(folder: Path, console: Console) -> None:
    from misotune.default_model import fetch_default_model

    origin = fetch_default_model(folder, console.print)
    console.print(f"model from {origin}")


def _prepare(out: Path, console: Console) -> None:
    from misotune.data.prepare import PrepareSettings, prepare_dataset
    from misotune.data.sources.registry import find_source

    prepared = prepare_dataset(find_source("starter"), out, PrepareSettings(mode="para"))
    console.print(f"{prepared.num_rows} rows in {prepared.out}")


def _evaluate(model: str, out: Path | None, dtype: str, console: Console) -> "Scores":
    from misotune.cli.eval_progress import generation_progress
    from misotune.evaluation.evaluate import evaluate_model
    from misotune.evaluation.tasks import load_task

    task = load_task("starter")
    with generation_progress(task.name, len(task.prompts), console) as on_progress:
        scores = evaluate_model(
            model, task, out=out, max_new_tokens=_MAX_NEW_TOKENS, batch_size=68, dtype=dtype, on_progress=on_progress
        )
    console.print(f"strict accuracy per instruction: {100 * scores.figures['inst_level_strict_acc']:.1f} %")
    return scores


def _train(resolved: "ResolvedRecipe", console: Console) -> "RunFolder":
    from misotune.cli.train_live import training_watcher
    from misotune.recipe.resolved import dump
    from misotune.training.run import train

    with training_watcher(console) as watcher:
        return train(resolved.recipe, dump(resolved), overwrite=True, watcher=watcher)


def _against_base(run: "RunFolder", before: "Scores") -> "AgainstBase | None":
    """Makes the scores from before training, when there was no run yet, the run's base scores, and compares."""
    from misotune.evaluation.base_scores import compare_with_base, keep_as_base

    keep_as_base(run, before)
    return compare_with_base(run, before.task)


def _export(run: "RunFolder", console: Console) -> Path:
    from misotune.export.export import export_run

    out = Path("exports") / run.name
    export_run(run, out, overwrite=True, on_message=console.print)
    return out


def _show(results: _Results, console: Console) -> None:
    from misotune.training.watching.memory import peak_memory_gib

    table = Table(
        title=f"starter: {results.before.num_prompts} held-out prompts, accuracy in percent",
        title_justify="left",
        box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2,
    )
    table.add_column("model")
    for heading in ("prompt strict", "instr. strict", "prompt loose", "instr. loose"):
        table.add_column(heading, justify="right")
    for name, scores in (("before", results.before), ("after", results.after)):
        figures = scores.figures
        table.add_row(
            name,
            *(
                f"{100 * value:.1f}"
                for value in (
                    figures["prompt_level_strict_acc"],
                    figures["inst_level_strict_acc"],
                    figures["prompt_level_loose_acc"],
                    figures["inst_level_loose_acc"],
                )
            ),
        )
    console.print()
    console.print(table)
    share = results.after.figures["prompt_level_strict_acc"]
    error = 100 * (share * (1 - share) / results.after.num_prompts) ** 0.5
    console.print(f"standard error of a prompt-level figure: {error:.1f} points; smaller differences say nothing")
    if results.change is not None:
        console.print(f"against its base model: {results.change.finding()}")
    console.print()
    recipe = results.resolved.recipe
    for label, path in (
        ("model before", recipe.model.name),
        ("dataset", recipe.data.path),
        ("run", results.run.path),
        ("scores", results.after.folder),
        ("export", results.export),
    ):
        console.print(f"{label:<13}{path}")
    console.print(f"{results.seconds / 60:.1f} minutes, peak memory {peak_memory_gib():.1f} GiB")
    console.print("next: prepare your own data and train on it: misotune prepare --help")
