"""A batch script for Slurm: one task per GPU, saved before the time limit, and gone on with afterwards."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from misotune.errors import UsageError

# Seconds before the time limit at which tasks get SIGTERM: enough for a step and a checkpoint.
_SIGNAL_BEFORE_S = 600
# Exit code of a rank that SIGTERM stopped, and that has saved.
_STOPPED = 143
_TIME = re.compile(r"\d+|\d+:\d+(:\d+)?|\d+-\d+(:\d+){0,2}")


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """What a batch script is made of.

    Attributes:
        name: Of the job, and of the run.
        recipe: Path or name of the recipe.
        overrides: KEY=VALUE, as the user gave them.
        run_folder: Where checkpoints are looked for.
        nodes: Machines.
        gpus_per_node: GPUs, and so tasks, on each.
        cpus_per_gpu: Cores for each task.
        time_limit: In one of Slurm's forms.
        python: Interpreter on the machines.
        folder: Where the job runs: relative paths in the recipe start there.
        is_offline: Whether the machines have no network.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    run_folder: Path
    nodes: int
    gpus_per_node: int
    cpus_per_gpu: int
    time_limit: str
    python: str
    folder: Path
    is_offline: bool


def sbatch_script(job: SlurmJob) -> str:
    """Returns the script.

    Raises:
        UsageError: The time limit has a form that Slurm does not know.
    """
    if not _TIME.fullmatch(job.time_limit):
        raise UsageError(f"--time {job.time_limit}: Slurm's forms are MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS")
    train = ["train", job.recipe, *job.overrides, *(["--offline"] if job.is_offline else [])]
    values = {
        "NAME": job.name,
        "NODES": str(job.nodes),
        "GPUS": str(job.gpus_per_node),
        "CPUS": str(job.cpus_per_gpu),
        "TIME": job.time_limit,
        "SIGNAL": f"TERM@{_SIGNAL_BEFORE_S}",
        "STOPPED": str(_STOPPED),
        "FOLDER": shlex.quote(str(job.folder)),
        "PYTHON": shlex.quote(job.python),
        "TRAIN": shlex.join(train),
        "RUN": shlex.quote(str(job.run_folder)),
    }
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], _SCRIPT)


_SCRIPT = """\
#!/bin/bash
# Written by `misotune launch slurm`. The folder, the model and the cache of tokens must be seen by every machine.
#SBATCH --job-name=@NAME@
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=@GPUS@
#SBATCH --gpus-per-node=@GPUS@
#SBATCH --cpus-per-task=@CPUS@
#SBATCH --time=@TIME@
#SBATCH --output=@NAME@-%j.log
#SBATCH --open-mode=append
# The tasks get SIGTERM so many seconds before the time limit; they finish their step, save, and end with @STOPPED@.
#SBATCH --signal=@SIGNAL@
# After preemption, or when a machine fails, Slurm starts the script again.
#SBATCH --requeue
# What your cluster asks for on top; take one # away:
##SBATCH --partition=PARTITION
##SBATCH --account=ACCOUNT
##SBATCH --mem=0

set -u
cd @FOLDER@ || exit
misotune=(@PYTHON@ -m misotune @TRAIN@)
run=@RUN@
# Slurm does not hand --cpus-per-task on to srun by itself.
export SRUN_CPUS_PER_TASK=@CPUS@
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-@CPUS@}"

# bash outlives the tasks; when it gets the signal itself, the job was cancelled or preempted, and Slurm decides.
signalled=
trap 'signalled=1' TERM INT

# Tokens are made once, before tasks start and while they cannot wait for one another; the plan goes to the log.
"${misotune[@]}" --plan --nnodes @NODES@ --nproc @GPUS@ || exit

how=()
if [ -e "$run/recipe.yaml" ]; then
    how=(--resume)  # from the last checkpoint, or from step 0 where nothing was saved
fi

srun --kill-on-bad-exit=1 --wait=60 "${misotune[@]}" ${how[@]+"${how[@]}"}
code=$?

if [ "$code" -eq @STOPPED@ ] && [ -z "$signalled" ]; then
    echo "stopped before the time limit, and saved; the job goes on as soon as Slurm lets it" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
