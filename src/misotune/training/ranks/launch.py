"""Processes: whether this is one of several, and starting one for each GPU."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch


def world_size() -> int:
    """Returns the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """True in the one process that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def processes_to_start(nproc: int | None, *, uses_deepspeed: bool) -> int:
    """Returns how many processes to launch, or 0 when this process trains itself.

    Inside torchrun, srun or another launcher (RANK is set) it joins; else there is one process for each
    visible GPU. DeepSpeed needs a launcher even for one process.

    Args:
        nproc: Number asked for; None: one per visible GPU.
        uses_deepspeed: Whether the recipe has a DeepSpeed section.
    """
    if "RANK" in os.environ:
        return 0
    number = nproc or max(1, torch.cuda.device_count())
    return number if number > 1 or uses_deepspeed else 0


def launch(number: int, arguments: Sequence[str], announce: Callable[[str], None]) -> int:
    """Runs `misotune ARGUMENTS` in `number` processes under torch's elastic launcher; returns the exit code."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={number}",
        "--no-python",
        sys.executable,
        "-m",
        "misotune",
        *arguments,
    ]
    announce(shlex.join(command))
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    return subprocess.run(command, env=environment, check=False).returncode
