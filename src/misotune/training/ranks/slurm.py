"""Slurm: what srun tells its tasks, made into what torchrun would tell them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from misotune.errors import UsageError

# Below the ports that Linux gives out by itself (32768 and up).
_FIRST_PORT, _NUM_PORTS = 12_000, 20_000
_RANGES = r"\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"


@dataclass(frozen=True, slots=True)
class Step:
    """A task of a job step that runs several.

    Attributes:
        num_tasks: Tasks of the step.
        task: Number of this one, from 0.
        local_task: Number of this one on its machine.
        tasks_per_node: Tasks on each machine.
        node: Number of this machine in the step.
        host: Name of the step's first machine.
        port: A port that only this job takes.
    """

    num_tasks: int
    task: int
    local_task: int
    tasks_per_node: tuple[int, ...]
    node: int
    host: str
    port: int

    def is_for_whole_nodes(self, num_gpus: int) -> bool:
        """True with one task on each machine that sees several GPUs: it starts the machine's ranks."""
        return num_gpus > 1 and set(self.tasks_per_node) == {1}

    def rank_variables(self, num_gpus: int) -> dict[str, str]:
        """Returns the variables that torchrun would set for this task.

        Args:
            num_gpus: GPUs that this task sees; where Slurm shows each task its own GPU alone, all take GPU 0.
        """
        return {
            "RANK": str(self.task),
            "WORLD_SIZE": str(self.num_tasks),
            "LOCAL_RANK": str(self.local_task % num_gpus if num_gpus else self.local_task),
            "LOCAL_WORLD_SIZE": str(self.tasks_per_node[self.node]),
            "GROUP_RANK": str(self.node),
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
        }


def step_of(environment: Mapping[str, str]) -> Step | None:
    """Returns the step that srun started this process in; None outside, and where it runs one task alone.

    A batch script and the shell of `salloc` have SLURM_NTASKS and SLURM_PROCID too, but are one process: only what
    srun started has the number of tasks of its step.

    Raises:
        UsageError: A variable is missing or has a form that is not Slurm's.
    """
    num_tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if num_tasks == "1" or "SLURM_PROCID" not in environment:
        return None
    try:
        hosts = expand_hosts(environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"])
        tasks_per_node = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment["SLURM_TASKS_PER_NODE"]
        return Step(
            num_tasks=int(num_tasks),
            task=int(environment["SLURM_PROCID"]),
            local_task=int(environment["SLURM_LOCALID"]),
            tasks_per_node=_counts(tasks_per_node),
            node=int(environment["SLURM_NODEID"]),
            host=environment.get("MASTER_ADDR", hosts[0]),
            port=int(environment.get("MASTER_PORT", port_of_job(int(environment["SLURM_JOB_ID"])))),
        )
    except KeyError as error:
        raise UsageError(f"this is one of srun's {num_tasks} tasks, but {error.args[0]} is not set") from error
    except ValueError as error:
        raise UsageError(f"this is one of srun's {num_tasks} tasks, but a SLURM_ variable is odd: {error}") from error


def port_of_job(job: int) -> int:
    """Returns the port at which a job's ranks meet: two jobs on one machine have different ones."""
    return _FIRST_PORT + job % _NUM_PORTS


def expand_hosts(nodelist: str) -> list[str]:
    """Returns the machines of a Slurm node list, in order.

    >>> expand_hosts("gpu[03-05,9],login1")
    ['gpu03', 'gpu04', 'gpu05', 'gpu9', 'login1']
    >>> expand_hosts("r[1-2]n[0-1]-ib")
    ['r1n0-ib', 'r1n1-ib', 'r2n0-ib', 'r2n1-ib']

    Raises:
        ValueError: It is empty, or its brackets do not close.
    """
    if not re.fullmatch(rf"(?:[^\[\]]|{_RANGES})+", nodelist):
        raise ValueError(f"{nodelist!r} is no node list")
    items = re.findall(rf"(?:[^,\[\]]|{_RANGES})+", nodelist)
    return [host for item in items for host in _expand(item.strip())]


def _expand(item: str) -> list[str]:
    match = re.match(r"([^\[]*)\[([^\]]*)\](.*)", item)
    if not match:
        return [item] if item else []
    before, ranges, after = match.groups()
    numbers: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.strip().partition("-")
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]
    return [f"{before}{number}{rest}" for number in numbers for rest in (_expand(after) or [""])]


def _counts(text: str) -> tuple[int, ...]:
    """Returns tasks per machine out of Slurm's short form: `4(x2),3` is 4, 4, 3."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise ValueError(f"{text!r} is no list of tasks per node")
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)
