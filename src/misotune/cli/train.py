"""`misotune train`: trains a model by a recipe."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from misotune.training.run import Watcher
    from misotune.training.watching.metrics import StepMetrics


def train(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values in place of the recipe's: train.max_steps=20"),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print rows, tokens and steps, and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint of this run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete an earlier run of the same name.")] = False,
    nproc: Annotated[int | None, typer.Option(min=1, help="Processes to start. [default: one per visible GPU]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan and the result as JSON.")] = False,
) -> None:
    """Train a model with MISO attention.

    Writes the run folder runs/NAME; `misotune eval` and `misotune export` find it there.
    """
    from misotune.recipe.loading import find_recipe, load_recipe
    from misotune.recipe.resolved import dump

    resolved = load_recipe(find_recipe(recipe), overrides or [])
    console = Console(stderr=True, soft_wrap=True, highlight=False)

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    from misotune.training.ranks import launch

    number = launch.processes_to_start(nproc, uses_deepspeed=resolved.recipe.deepspeed is not None)
    if number and not plan:
        arguments = ["train", recipe, *(overrides or [])]
        flags = {"--resume": resume, "--overwrite": overwrite, "--json": as_json}
        arguments += [flag for flag, is_set in flags.items() if is_set]
        sys.exit(launch.launch(number, arguments, lambda command: console.print(f"starting: {command}")))

    from misotune.training.run import prepare_run
    from misotune.training.run import train as run_training

    with training_watcher(console, as_json=as_json) as watcher:
        if plan:
            prepared = prepare_run(resolved.recipe, num_devices=max(number, 1), watcher=watcher)
            assert watcher.on_plan is not None
            watcher.on_plan(prepared.plan)
            return
        run = run_training(resolved.recipe, dump(resolved), resume=resume, overwrite=overwrite, watcher=watcher)
    if launch.is_main_process():
        if as_json:
            typer.echo(json.dumps({"run": str(run.path), "final": str(run.final)}))
        console.print(f"trained: {run.final}\nnext: misotune eval ifeval   or   misotune export")


@contextmanager
def training_watcher(console: Console, *, as_json: bool = False) -> Iterator["Watcher"]:
    """Yields a watcher that draws bars on a terminal and prints lines elsewhere."""
    from misotune.training.run import Watcher

    def on_plan(plan: dict[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps(plan))
        else:
            console.print(plan_table(plan))

    if not console.is_terminal:
        yield Watcher(
            on_encode=_plain_encoding(console),
            on_plan=on_plan,
            on_metrics=lambda metrics: console.print(metrics_line(metrics)),
            on_message=console.print,
        )
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        encoding = progress.add_task("tokens", total=None, note="")
        steps = progress.add_task("steps", total=None, note="", visible=False)

        def on_metrics(metrics: "StepMetrics") -> None:
            speed, memory = metrics.total_tokens_per_s, metrics.peak_memory_gib
            note = f"loss {metrics.loss:.3f}  {speed:,.0f} tokens/s  {memory:.1f} GiB"
            progress.update(steps, completed=metrics.step, note=note)

        def on_plan_drawn(plan: dict[str, Any]) -> None:
            on_plan(plan)
            # Drawn before the first step ends, which may take minutes.
            progress.update(steps, visible=True, total=plan["steps"], note="the first step")

        speed_of = _row_speed()

        def on_encode(done: int, total: int) -> None:
            progress.update(encoding, total=total, completed=done, note=f"{speed_of(done):,.0f} rows/s")

        yield Watcher(
            on_encode=on_encode,
            on_plan=on_plan_drawn,
            on_metrics=on_metrics,
            on_message=console.print,
        )


def metrics_line(metrics: "StepMetrics") -> str:
    """Returns one plain line for a log."""
    return (
        f"step {metrics.step}/{metrics.num_steps}  epoch {metrics.epoch:.2f}  loss {metrics.loss:.4f}  "
        f"lr {metrics.learning_rate:.2e}  grad {metrics.grad_norm:.3f}  "
        f"{metrics.total_tokens_per_s:,.0f} tokens/s, {metrics.trained_tokens_per_s:,.0f} of them trained  "
        f"{metrics.peak_memory_gib:.2f} GiB  {metrics.elapsed_s:,.0f} s"
    )


def plan_table(plan: dict[str, Any]) -> Table:
    """Returns the plan as a table."""
    table = Table(show_header=False, title=f"plan of {plan['name']}", title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    data, length, inputs = plan["data"], plan["sample_length"], plan["inputs_per_sample"]
    table.add_row("model", f"{plan['model']}, {plan['trains']}, {plan['precision']}, {plan['engine']}")
    table.add_row(
        "dataset",
        f"{plan['dataset']}: {data['rows']:,} rows, {data['samples']:,} samples, {data['cut']:,} cut",
    )
    if "chunks" in data:
        chunks = data["chunks"]
        table.add_row("chunks", f"{chunks['rows']:,} of the rows joined to {chunks['samples']:,} samples")
    if plan["cache"]["folder"]:
        table.add_row("tokens in", f"{plan['cache']['folder']} ({'found there' if plan['cache']['used'] else 'new'})")
    for reason, dropped in data["dropped"].items():
        table.add_row("dropped", f"{dropped['samples']:,} x {reason} (first: row {dropped['first']})")
    table.add_row(
        "attention",
        f"{plan['mode']}, weighting {plan['weighting']}, positions {plan['positions']}, kernel {plan['kernel']}",
    )
    table.add_row("inputs per sample", f"{inputs['mean']} on average, {inputs['max']} at most")
    table.add_row(
        "tokens per sample", f"median {length['median']:,}, 99 % {length['p99']:,}, longest {length['max']:,}"
    )
    table.add_row("trained on", plan["trained_on"])
    table.add_row("tokens", f"{plan['tokens']:,}, of them trained {plan['trained_tokens']:,}")
    table.add_row(
        "steps",
        f"{plan['steps']:,} of {plan['samples_per_step']} samples: "
        f"{plan['devices']} device(s) x {plan['accumulation']} micro-batches",
    )
    if plan["row_capacity"] is not None:
        table.add_row(
            "packing",
            f"{plan['packed_rows']:,} rows of {plan['row_capacity']:,} tokens, {plan['packing_waste']:.1%} left empty; "
            f"the longest row has {plan['longest_row']:,}",
        )
    if plan["devices"] > 1:
        table.add_row("balance", f"the longest of the rows side by side is {plan['device_balance']:.2f} x the mean")
    return table


def _plain_encoding(console: Console) -> Any:
    """Returns a callback that says once per tenth how far encoding is, on data sets that take a while."""
    shown: int | None = None
    speed_of = _row_speed()

    def on_encode(done: int, total: int) -> None:
        nonlocal shown
        speed, tenths = speed_of(done), done * 10 // total
        # The first call says what was there already.
        if total >= 10_000 and shown is not None and tenths > shown:
            console.print(f"encoded {done:,} of {total:,} rows ({speed:,.0f} rows/s)")
        shown = tenths

    return on_encode


def _row_speed() -> Callable[[int], float]:
    """Returns what gives, from the number of rows done, the rows done a second since its first call."""
    first: tuple[float, int] | None = None

    def speed_of(done: int) -> float:
        nonlocal first
        first = first or (time.monotonic(), done)
        return (done - first[1]) / max(time.monotonic() - first[0], 1e-3)

    return speed_of
