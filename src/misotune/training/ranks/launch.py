"""Which processes train together: whether this is one of several already, or how many are to be started."""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from misotune.errors import UsageError
from misotune.training.ranks import slurm

DEFAULT_PORT = 29500
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Machines:
    """The machines of a job, and which one this is.

    Attributes:
        num_local: Ranks on each machine.
        num_nodes: Machines.
        node: Number of this machine, from 0.
        host: Name or address of machine 0, as all machines reach it.
        port: Port on machine 0 where ranks find one another; 0: any free one.
    """

    num_local: int
    num_nodes: int = 1
    node: int = 0
    host: str = LOOPBACK
    port: int = 0

    @property
    def world_size(self) -> int:
        """Ranks on all machines."""
        return self.num_local * self.num_nodes


def world_size() -> int:
    """Returns the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """True in the one process that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def join(environment: MutableMapping[str, str], num_gpus: int) -> bool:
    """Returns whether this process is one of several that another program started; a task of srun is made a rank.

    torchrun and DeepSpeed's launcher set RANK and what belongs to it. srun sets variables of its own: RANK and the
    others are put into `environment` for it.

    Args:
        environment: The process's environment.
        num_gpus: GPUs that this process sees.

    Raises:
        UsageError: RANK is set, but not all that belongs to it.
    """
    if "RANK" not in environment and (step := slurm.step_of(environment)) and not step.is_for_whole_nodes(num_gpus):
        for name, value in step.rank_variables(num_gpus).items():
            environment.setdefault(name, value)
    if "RANK" not in environment:
        return False
    needed = ["WORLD_SIZE", "LOCAL_RANK"]
    if environment.get("WORLD_SIZE") != "1":
        needed += ["MASTER_ADDR", "MASTER_PORT"]
    if missing := [name for name in needed if name not in environment]:
        raise UsageError(
            f"RANK is set, but not {' and '.join(missing)}; unset RANK, and misotune starts its processes itself; "
            "or start it by torchrun, srun or DeepSpeed's launcher, which set all of them"
        )
    return True


def machines(
    environment: Mapping[str, str],
    num_gpus: int,
    *,
    nproc: int | None,
    nnodes: int | None,
    node_rank: int | None,
    master: str | None,
) -> Machines:
    """Returns the job's machines, from options and from Slurm; one process for each visible GPU, or one.

    Args:
        environment: The process's environment.
        num_gpus: GPUs that this process sees.
        nproc: Processes on each machine; None: one for each GPU.
        nnodes: Machines; None: as Slurm says, else one.
        node_rank: Number of this machine; None: 0.
        master: HOST:PORT of machine 0; None: not told.

    Raises:
        UsageError: The options do not agree.
    """
    num_local = nproc or max(1, num_gpus)
    if nnodes is None and node_rank is None and master is None:
        if (step := slurm.step_of(environment)) and step.is_for_whole_nodes(num_gpus):
            return Machines(num_local, step.num_tasks, step.node, step.host, step.port)
        return Machines(num_local)
    nnodes = nnodes or 1
    if not 0 <= (node_rank or 0) < nnodes:
        raise UsageError(f"--node-rank {node_rank} is not in 0..{nnodes - 1}: --nnodes is {nnodes}")
    host, port = host_and_port(master) if master else (LOOPBACK, 0 if nnodes == 1 else DEFAULT_PORT)
    return Machines(num_local, nnodes, node_rank or 0, host, port)


def host_and_port(text: str) -> tuple[str, int]:
    """Returns the parts of HOST:PORT; without a port it is 29500, as torchrun has it.

    Raises:
        UsageError: It has another form.
    """
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(DEFAULT_PORT))
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--master {text}: give HOST:PORT, as in node1:{DEFAULT_PORT}")
    return host.strip("[]"), int(port)


def train_alone(environment: MutableMapping[str, str]) -> None:
    """Makes this process rank 0 of 1, which DeepSpeed asks for, without a launcher."""
    environment.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR=LOOPBACK, MASTER_PORT="0"
    )
