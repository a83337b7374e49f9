"""What each rank says of itself, and what must be the same on all."""

import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch.cuda import nccl

from misotune.packages import installed_version
from misotune.training.ranks.store import this_place

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "deepspeed")
# Of many differences the first few say what is wrong.
_MAX_SHOWN = 4


@dataclass(frozen=True, slots=True)
class RankReport:
    """What must be the same on every rank, and where it runs.

    Attributes:
        recipe: The resolved recipe as JSON.
        data: Hash of the encoded corpus.
        versions: Of the packages that compute.
        device: Kind of device: `cpu` or `cuda`.
        host: Name of the machine.
        rank: Number of the process.
        local_rank: Its number on its host.
        world_size: Number of processes that it was told of.
        pid: Its process id.
        gpu: The GPU's name; None on a CPU.
        gpu_id: What tells it from all other GPUs; None on a CPU.
        memory_gib: Of the GPU; on a CPU the machine's.
        free_disk_gib: Where the run folder lies.
        code: Hash of misotune's own files: two checkouts may bear the same version.
        problem: What keeps this rank from training; None: nothing.
    """

    recipe: str
    data: str
    versions: dict[str, str]
    device: str
    host: str
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    pid: int = 0
    gpu: str | None = None
    gpu_id: str | None = None
    memory_gib: float = 0.0
    free_disk_gib: float = 0.0
    code: str = ""
    problem: str | None = None


def make_report(recipe: str, data: str, folder: Path) -> RankReport:
    """Returns this process's report.

    Args:
        recipe: The resolved recipe as JSON.
        data: Hash of the encoded corpus.
        folder: The run folder, which need not be there yet.
    """
    place = this_place()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = gpu_id = problem = None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device == "cuda" and place.local_rank >= torch.cuda.device_count():
        problem = (
            f"LOCAL_RANK is {place.local_rank}, but {torch.cuda.device_count()} GPU(s) are visible; start as many "
            "processes as there are GPUs on the host, and let each see all of them (srun: --gpus-per-node rather than "
            "--gpus-per-task)"
        )
    elif device == "cuda":
        found = torch.cuda.get_device_properties(place.local_rank)
        gpu, gpu_id, memory = found.name, str(getattr(found, "uuid", "")) or None, found.total_memory
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return RankReport(
        recipe=recipe,
        data=data,
        versions=_versions(device),
        device=device,
        host=place.host,
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
        pid=os.getpid(),
        gpu=gpu,
        gpu_id=gpu_id,
        memory_gib=round(memory / 2**30, 2),
        free_disk_gib=round(shutil.disk_usage(there).free / 2**30, 2),
        code=_code_hash()[:8],
        problem=problem,
    )


def disagreement(reports: Sequence[RankReport]) -> str | None:
    """Returns in one line what keeps these ranks from training together, or None.

    Args:
        reports: One of each rank, in order.
    """
    alone = [f"rank {report.rank} on {report.host}: {report.problem}" for report in reports if report.problem]
    if alone:
        return _join(alone)
    shared = _shared_gpus(reports)
    if shared:
        return _join(shared) + "; start one process for each GPU"
    # Ranks of one host read the same files: between them, a difference is an edit while they started.
    codes: dict[str, str] = {}
    facts = [_facts(report) | {"misotune's code": codes.setdefault(report.host, report.code)} for report in reports]
    lines: list[str] = []
    for name in dict.fromkeys(name for fact in facts for name in fact):
        holders: defaultdict[str, list[RankReport]] = defaultdict(list)
        for report, fact in zip(reports, facts, strict=True):
            holders[fact.get(name, "not set")].append(report)
        if len(holders) > 1:
            most_first = sorted(holders.items(), key=lambda item: (-len(item[1]), item[1][0].rank))
            lines.append(
                f"{name} is " + ", but ".join(f"{value} on {name_ranks(group)}" for value, group in most_first)
            )
    if not lines:
        return None
    return f"the ranks differ: {_join(lines)}; give all ranks the same recipe, data and packages"


def name_ranks(reports: Sequence[RankReport]) -> str:
    """Returns ranks with their hosts.

    >>> name_ranks([RankReport("", "", {}, "cpu", host, rank) for rank, host in enumerate(["a", "a", "b"])])
    'ranks 0-2 (a, b)'
    """
    hosts = list(dict.fromkeys(report.host for report in reports))
    shown = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more hosts" if len(hosts) > 3 else "")
    return f"{number_ranks([report.rank for report in reports])} ({shown})"


def number_ranks(ranks: Sequence[int]) -> str:
    """Returns ranks in words.

    >>> number_ranks([4, 0, 1, 2])
    'ranks 0-2, 4'
    >>> number_ranks([3])
    'rank 3'
    """
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    names = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank{'' if len(ranks) == 1 else 's'} {names}"


def _join(lines: list[str]) -> str:
    more = f"; and {len(lines) - _MAX_SHOWN} more" if len(lines) > _MAX_SHOWN else ""
    return "; ".join(lines[:_MAX_SHOWN]) + more


def _facts(report: RankReport) -> dict[str, str]:
    """Returns what must be the same, by the name that a message gives it; the likeliest causes first."""
    values = {"WORLD_SIZE": str(report.world_size), "the kind of device": report.device}
    values |= {f"the recipe's {key}": value for key, value in _leaves(json.loads(report.recipe), "")}
    values["the encoded data"] = report.data[:12]
    return values | report.versions


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value)


def _shared_gpus(reports: Sequence[RankReport]) -> list[str]:
    users: defaultdict[str, list[RankReport]] = defaultdict(list)
    for report in reports:
        if report.gpu_id is not None:
            users[report.gpu_id].append(report)
    return [f"{name_ranks(group)} use the same {group[0].gpu}" for group in users.values() if len(group) > 1]


def _versions(device: str) -> dict[str, str]:
    found = {
        "misotune": installed_version("misotune") or "a source tree",
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
    found |= {package: installed_version(package) or "not installed" for package in _PACKAGES}
    if device == "cuda":
        found["CUDA"] = str(torch.version.cuda)
        found["NCCL"] = ".".join(map(str, nccl.version()))
    return found


@cache
def _code_hash() -> str:
    """Returns a hash of the package's own files."""
    root = Path(__file__).parents[2]
    digest = sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
