"""How `misotune train` becomes several processes: here, on each of several machines, or by ssh from one terminal."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from misotune.errors import MisotuneError, RunError, StoppedError, UsageError

if TYPE_CHECKING:
    from misotune.recipe.schema import Recipe
    from misotune.training.prepared import Watcher
    from misotune.training.ranks.launch import Machines
    from misotune.training.ranks.outcome import Outcome

_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "offline"}


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """The command's options about processes, as they were given."""

    nproc: int | None = None
    hostfile: Path | None = None
    nnodes: int | None = None
    node_rank: int | None = None
    master: str | None = None
    signals_from_stdin: bool = False

    def given(self) -> list[str]:
        """Returns the names of those that were given."""
        values = {"--nproc": self.nproc, "--hostfile": self.hostfile, "--nnodes": self.nnodes}
        values |= {"--node-rank": self.node_rank, "--master": self.master}
        return [name for name, value in values.items() if value is not None]


@dataclass(frozen=True, slots=True)
class Launch:
    """What a parent hands to its ranks.

    Attributes:
        arguments: What each rank is called with, after `misotune`.
        resume: Whether the run goes on.
        overwrite: Whether an earlier run is deleted.
    """

    arguments: Sequence[str]
    resume: bool
    overwrite: bool


def go_offline() -> None:
    """Keeps this process and its ranks from trying the network; called before any library is imported."""
    os.environ.update(_OFFLINE)


def machines_to_start(options: LaunchOptions, *, uses_deepspeed: bool) -> "Machines | None":
    """Returns the job whose ranks this command starts, or None where this process trains itself.

    It trains itself as one of several that another program started, or alone: DeepSpeed then needs the variables of
    a launcher, which are set, but no launcher.

    Raises:
        UsageError: The options do not fit.
    """
    import torch

    from misotune.training.ranks import launch
    from misotune.training.ranks.hosts import read_hostfile

    num_gpus = torch.cuda.device_count()
    if launch.join(os.environ, num_gpus):
        if options.given():
            raise UsageError(
                f"{' and '.join(options.given())}: this process is one of several already (RANK is "
                f"{os.environ['RANK']}); what started it decides about processes"
            )
        return None
    if options.hostfile is not None:
        if others := [name for name in options.given() if name not in ("--hostfile", "--master")]:
            raise UsageError(f"{' and '.join(others)}: --hostfile says this already")
        hosts = read_hostfile(options.hostfile)
        host, port = launch.host_and_port(options.master or hosts[0].name)
        return launch.Machines(hosts[0].slots, len(hosts), 0, host, port)
    machines = launch.machines(
        os.environ,
        num_gpus,
        nproc=options.nproc,
        nnodes=options.nnodes,
        node_rank=options.node_rank,
        master=options.master,
    )
    if machines.world_size > 1:
        return machines
    if uses_deepspeed:
        launch.train_alone(os.environ)
    return None


def launch_on_hosts(machines: "Machines", hostfile: Path, launch: Launch, console: Console) -> int:
    """Trains on the machines of a hostfile; returns the exit code, which the machines have explained."""
    from misotune.training.ranks.hosts import read_hostfile, run_on_hosts

    return run_on_hosts(
        read_hostfile(hostfile), machines, launch.arguments, lambda line: console.print(line, style="dim")
    )


def launch_here(
    machines: "Machines",
    recipe: "Recipe",
    launch: Launch,
    options: LaunchOptions,
    console: Console,
    watching: Callable[[], "AbstractContextManager[Watcher]"],
    show_plan: Callable[[Mapping[str, Any]], None],
) -> None:
    """Makes the tokens, checks all that can be checked without a model, and runs this machine's ranks.

    Args:
        machines: The job's machines.
        recipe: The recipe.
        launch: What the ranks are called with.
        options: The command's options.
        console: Where commands and errors are shown.
        watching: Gives a watcher for the time until ranks start.
        show_plan: Shows the plan.

    Raises:
        MisotuneError: What ended the run, in one line, with the exit code of the ranks.
    """
    from misotune.runs import SAME_COMMAND, RunFolder
    from misotune.training.ranks.hosts import follow_stdin
    from misotune.training.ranks.launch import LOOPBACK
    from misotune.training.ranks.nodes import NodeLink
    from misotune.training.ranks.starting import open_store, run_ranks
    from misotune.training.run import check_start
    from misotune.training.signals import StopSignals

    if machines.num_nodes > 1 and machines.host == LOOPBACK:
        raise UsageError(
            f"--nnodes {machines.num_nodes} needs --master HOST:PORT, by which all machines reach machine 0"
        )
    failed_elsewhere = follow_stdin() if options.signals_from_stdin else None
    run = RunFolder(Path(recipe.output.runs_dir) / recipe.name)
    store = link = None
    earlier = _when_written(run.recipe)
    tokens = _tokens_for_ranks()
    try:
        with StopSignals(run, is_resumed=launch.resume):
            if machines.node == 0:
                store = open_store(machines)
            if machines.num_nodes > 1:
                link = NodeLink(machines.host, machines.port, machines.num_nodes, machines.node, store)
            with watching() as watcher:
                plan = check_start(
                    recipe,
                    num_devices=machines.world_size,
                    resume=launch.resume,
                    overwrite=launch.overwrite,
                    has_run_folder=machines.node == 0,
                    watcher=watcher,
                )
            if machines.node == 0:
                show_plan(plan)
            if link is not None:
                link.wait_for_all(recipe.train.timeout_minutes * 60, console.print)
        outcome = run_ranks(
            machines,
            launch.arguments,
            port=store.port if store is not None else machines.port,
            link=link,
            announce=lambda line: console.print(f"starting: {line}", style="dim"),
            # An earlier run's folder, which --overwrite would have deleted, is none to go on with.
            go_on=lambda: run.next_command() if launch.resume or _when_written(run.recipe) != earlier else SAME_COMMAND,
        )
    except MisotuneError as error:
        if link is not None:
            link.tell_failed(str(error))
        if failed_elsewhere is not None and failed_elsewhere.is_set():
            sys.exit(error.exit_code)  # where it failed, it is said why
        raise
    finally:
        if tokens is not None:
            tokens.cleanup()
        if link is not None:
            link.leave()
    if outcome.exit_code:
        raise _as_error(outcome, console)


def _tokens_for_ranks() -> "TemporaryDirectory[str] | None":
    """Returns a cache of tokens for this run alone where the user has switched the cache off; None: there is one.

    Else every rank would make the tokens again, one longer than another, while the others wait a minute for it.
    """
    from misotune.training.corpus_cache import cache_folder

    if cache_folder() is not None:
        return None
    folder = TemporaryDirectory(prefix="misotune-tokens-")
    os.environ["MISOTUNE_CACHE"] = folder.name
    return folder


def _when_written(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _as_error(outcome: "Outcome", console: Console) -> MisotuneError:
    if outcome.details:
        console.print(outcome.details.rstrip(), markup=False)
    if outcome.exit_code > 128:
        return StoppedError(outcome.message, outcome.exit_code - 128)
    if outcome.exit_code == UsageError.exit_code:
        return UsageError(outcome.message)
    error = RunError(outcome.message)
    error.exit_code = outcome.exit_code
    return error
