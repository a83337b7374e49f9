"""`misotune launch`: scripts that start training on a cluster."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from misotune.cli import completion
from misotune.cli.command import Command, Group

app = typer.Typer(cls=Group, help="Write scripts that start training on a cluster.", no_args_is_help=True)


@app.callback()
def _launch() -> None:
    """Write scripts that start training on a cluster."""


@app.command("slurm", cls=Command)
def slurm(
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
    nodes: Annotated[int, typer.Option(metavar="N", min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[
        int, typer.Option(metavar="N", min=1, help="GPUs, and so processes, on each machine.")
    ] = 8,
    cpus_per_gpu: Annotated[int, typer.Option(metavar="N", min=1, help="Cores for each process.")] = 8,
    time: Annotated[str, typer.Option(metavar="LIMIT", help="Slurm's time limit: [DAYS-]HOURS:MINUTES:SECONDS.")] = (
        "24:00:00"
    ),
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the script goes. (default: NAME.sbatch, NAME the recipe's)"),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="The machines never try the network.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the script if it is there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the script's place and the job that it asks for as JSON.")
    ] = False,
) -> None:
    """Write an sbatch script: one task per GPU, which saves before the time limit and goes on after preemption."""
    from misotune.errors import RunError, UsageError
    from misotune.recipe.loading import find_recipe, load_recipe
    from misotune.training.ranks.sbatch import SlurmJob, sbatch_script

    path = find_recipe(recipe)
    resolved = load_recipe(path, overrides or []).recipe
    job = SlurmJob(
        name=resolved.name,
        # A shipped recipe keeps its name: the machines may have another installation folder.
        recipe=str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe,
        overrides=tuple(overrides or ()),
        run_folder=Path(resolved.output.runs_dir) / resolved.name,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_gpu=cpus_per_gpu,
        time_limit=time,
        python=sys.executable,
        folder=Path.cwd(),
        is_offline=offline,
    )
    script = sbatch_script(job)
    out = out or Path(f"{resolved.name}.sbatch")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already; --out FILE writes another, --overwrite replaces it")
    try:
        out.write_text(script, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or error})") from error
    if as_json:
        content = asdict(job) | {"script": out, "num_processes": nodes * gpus_per_node}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
        return
    Console(soft_wrap=True, highlight=False).print(
        f"written: {out}\nnext: add your cluster's #SBATCH lines (partition, account), then: sbatch {out}", markup=False
    )
