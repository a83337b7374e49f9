"""`misotune train`: trains a model by a recipe."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from misotune.cli import completion
from misotune.cli.train_launch import (
    Launch,
    LaunchOptions,
    go_offline,
    launch_here,
    launch_on_hosts,
    machines_to_start,
)
from misotune.cli.train_live import show_plan, training_watcher

_PROCESSES = "Processes"


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A recipe file, or the name of a shipped one.", autocompletion=completion.recipes
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values in place of the recipe's, as train.max_steps=20."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print rows, tokens, steps, memory, disk and time, and stop.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --plan: load the model and time its heaviest row.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint of this run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete an earlier run of the same name.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Never try the network; trackers keep to the disk.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan and the result as JSON.")] = False,
    nproc: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Processes on this machine. (default: one for each visible GPU; 1 without)",
            rich_help_panel=_PROCESSES,
        ),
    ] = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Start on several machines by ssh; the file has a line NAME slots=N for each.",
            rich_help_panel=_PROCESSES,
        ),
    ] = None,
    nnodes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Machines, each of which runs this command. (default: as Slurm says; 1 without)",
            rich_help_panel=_PROCESSES,
        ),
    ] = None,
    node_rank: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Number of this machine, from 0. (default: as Slurm says; 0 without)",
            rich_help_panel=_PROCESSES,
        ),
    ] = None,
    master: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where machine 0 is reached.", rich_help_panel=_PROCESSES),
    ] = None,
    signals_from_stdin: Annotated[bool, typer.Option("--signals-from-stdin", hidden=True)] = False,
) -> None:
    """Train a model with MISO attention.

    Writes the run folder runs/NAME; `misotune eval` and `misotune export` find it there.
    """
    if offline:
        go_offline()
    from misotune.recipe.loading import find_recipe, load_recipe
    from misotune.recipe.resolved import dump

    resolved = load_recipe(find_recipe(recipe), overrides or [])
    console = Console(stderr=True, soft_wrap=True, highlight=False)

    from misotune.cli.libraries import quiet_libraries

    quiet_libraries()
    options = LaunchOptions(nproc, hostfile, nnodes, node_rank, master, signals_from_stdin)
    machines = machines_to_start(options, uses_deepspeed=resolved.recipe.deepspeed is not None)
    if machines is not None and not plan:
        flags = {"--resume": resume, "--overwrite": overwrite, "--offline": offline, "--json": as_json}
        arguments = ["train", recipe, *(overrides or []), *(flag for flag, is_set in flags.items() if is_set)]
        launch = Launch(arguments, resume=resume, overwrite=overwrite)
        if hostfile is not None:
            sys.exit(launch_on_hosts(machines, hostfile, launch, console))
        launch_here(
            machines,
            resolved.recipe,
            launch,
            options,
            console,
            watching=lambda: training_watcher(console, as_json=as_json),
            show_plan=lambda plan: show_plan(console, plan, as_json=as_json),
        )
        return

    from misotune.training.prepared import measure_plan, prepare_run
    from misotune.training.ranks.child import has_parent
    from misotune.training.ranks.launch import is_main_process, world_size
    from misotune.training.run import train as run_training

    if plan:
        with training_watcher(console, as_json=as_json) as watcher:
            num_devices = machines.world_size if machines else world_size()
            prepared = prepare_run(resolved.recipe, num_devices=num_devices, watcher=watcher)
        if is_main_process():
            shown = measure_plan(resolved.recipe, prepared) if measure else prepared.plan
            show_plan(console, shown, as_json=as_json)
        return
    # A rank's parent has shown the plan already.
    with training_watcher(console, as_json=as_json, shows_plan=not has_parent()) as watcher:
        run = run_training(resolved.recipe, dump(resolved), resume=resume, overwrite=overwrite, watcher=watcher)
    if is_main_process():
        if as_json:
            typer.echo(json.dumps({"run": str(run.path), "final": str(run.final)}))
        console.print(f"trained: {run.final}\nnext: misotune eval ifeval   or   misotune export")
