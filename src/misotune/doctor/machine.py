"""The machine: cores, memory, GPUs, and the attention kernels that it can use."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.doctor.asking import Answer
from misotune.doctor.finding import Finding, in_gib, pip_install
from misotune.processor import bf16_instructions

_GROUP = "devices"
# What `misotune quickstart` takes at most.
_QUICKSTART_BYTES = int(4.5 * 2**30)
_SMI_TIMEOUT_S = 5
_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
# Older GPUs have no bfloat16, and no flash attention.
_OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the control groups of this process allow: bytes of memory, of which some are in use, and cores.

    None: no limit.
    """

    memory: int | None = None
    memory_used: int = 0
    cores: float | None = None


def examine_machine(torch: Answer) -> list[Finding]:
    """Returns findings on cores, memory and GPUs."""
    limits = read_limits()
    return [_cores(limits), _memory(limits), *_gpus(torch), *_collectives(torch)]


def examine_kernels(kernels: Answer) -> list[Finding]:
    """Returns which attention kernel would be taken for each device and precision."""
    if kernels.error is not None:
        detail = f"not known: {kernels.error}"
        return [Finding("attention", "kernels", "problem", detail, "training, generation", is_required=True)]
    return [
        Finding(
            "attention",
            f"{row['device']}, {row['precision']}",
            "ok",
            row["kernel"] + (f"; no flash: {row['no_flash']}" if row["no_flash"] else ""),
            f"miso.kernel=auto with train.precision={row['precision']}",
            is_required=True,
        )
        for row in kernels.facts["kernels"]
    ]


def read_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Limits:
    """Returns the tightest limits of this process's control group and those above it, of either version."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return Limits()
    memories: list[tuple[int, int]] = []
    cores: list[float] = []
    for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        for folder in _folders(root, kinds, path):
            limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
            if limit is not None and limit < 2**60:  # version 1 has a huge number for none
                memories.append((limit, _number(folder / "memory.current", folder / "memory.usage_in_bytes") or 0))
            quota = _quota(folder)
            cores += [] if quota is None else [quota]
    memory, used = min(memories, default=(None, 0))
    return Limits(memory, used, min(cores, default=None))


def _folders(root: Path, kinds: str, path: str) -> list[Path]:
    """Returns the folders of a control group and those above it; inside a container its own is the root."""
    base = root / kinds if kinds else root
    own = base / path.lstrip("/")
    return [own, *(parent for parent in own.parents if parent == base or base in parent.parents)]


def _quota(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and words[0] != "max":
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _number(*paths: Path) -> int | None:
    texts = [_text(path) for path in paths]
    return next((int(text) for text in texts if text.lstrip("-").isdigit()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _cores(limits: Limits) -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detail = f"{usable} of {os.cpu_count()} cores"
    if limits.cores is not None:
        detail += f", a control group allows the time of {limits.cores:g}"
    bf16 = bf16_instructions()
    if bf16 is not None:
        detail += f"; bf16 in hardware ({bf16})" if bf16 else "; bf16 is emulated, train.precision=fp32 is faster"
    return Finding(_GROUP, "CPU", "ok", detail, "training and generation without a GPU, prepare")


def _memory(limits: Limits) -> Finding:
    purpose = "misotune quickstart takes up to 4.5 GiB; train RECIPE --plan says what a run takes"
    values = {line.split(":")[0]: line.split() for line in _text(Path("/proc/meminfo")).splitlines()}
    if "MemAvailable" not in values:
        return Finding(_GROUP, "memory", "skipped", "this system does not tell", purpose)
    total, available = (int(values[key][1]) * 1024 for key in ("MemTotal", "MemAvailable"))
    detail = f"{in_gib(available)} available of {in_gib(total)}"
    if limits.memory is not None:
        available = min(available, limits.memory - limits.memory_used)
        detail = f"{in_gib(available)} available; a control group allows {in_gib(limits.memory)} of {in_gib(total)}"
    if available >= _QUICKSTART_BYTES:
        return Finding(_GROUP, "memory", "ok", detail, purpose)
    cure = "docker run --memory=16g ...   # Slurm: sbatch --mem=16G ..." if limits.memory is not None else None
    return Finding(_GROUP, "memory", "problem", detail, purpose, cure)


def _gpus(torch: Answer) -> list[Finding]:
    seen, driver = _driver()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    purpose = "training above about 1B parameters"
    if torch.error is not None:
        detail = f"{len(seen)} ({', '.join(seen)}), driver {driver}" if seen else "none that nvidia-smi knows"
        return [Finding(_GROUP, "GPU", "skipped", f"{detail}; torch cannot be asked", purpose)]
    if torch.facts["has_gpu"]:
        runtime = f"ROCm {torch.facts['hip']}" if torch.facts["hip"] else f"CUDA {torch.facts['cuda']}"
        about = f"{runtime}, driver {driver or 'unknown'}"
        return [_gpu(index, facts, about) for index, facts in enumerate(torch.facts["gpus"])]
    if not seen:
        return [Finding(_GROUP, "GPU", "missing", "none: models run on the CPU", purpose)]
    if hidden is not None:
        detail = f"{len(seen)} here ({', '.join(seen)}), hidden by CUDA_VISIBLE_DEVICES={hidden!r}"
        return [Finding(_GROUP, "GPU", "missing", detail, purpose, "unset CUDA_VISIBLE_DEVICES")]
    return [_unusable(seen, driver, torch.facts)]


def _unusable(seen: Sequence[str], driver: str | None, facts: Mapping[str, Any]) -> Finding:
    """A GPU that the driver knows and torch does not: training would take the CPU and not say why."""
    here = f"{len(seen)} here ({', '.join(seen)}, driver {driver})"
    if facts["cuda"] is None:
        detail, cure = f"{here}; this torch is built without CUDA", _reinstall_torch(None)
    else:
        detail = f"{here}; torch for CUDA {facts['cuda']} cannot use it"
        detail += f": {facts['warning']}" if facts["warning"] else ""
        # The oldest CUDA for which torch is still built.
        cure = f"{_reinstall_torch('cu126')}   # or a newer driver"
    return Finding(_GROUP, "GPU", "problem", detail, "training on the GPU", cure, is_required=True)


def _reinstall_torch(build: str | None) -> str:
    index = f"https://download.pytorch.org/whl/{build}" if build else "https://pypi.org/simple"
    return pip_install("--force-reinstall", "--index-url", index, "torch")


def _gpu(index: int, facts: Mapping[str, Any], about: str) -> Finding:
    name = f"GPU {index}"
    if facts["error"] is not None:
        detail = f"{facts['name']}: a product on it fails: {facts['error']}"
        return Finding(_GROUP, name, "problem", detail, "training on the GPU", "nvidia-smi -q", is_required=True)
    major, minor = facts["capability"]
    detail = f"{facts['name']}, {in_gib(facts['free'])} free of {in_gib(facts['total'])}, {about}"
    if (major, minor) >= _OLDEST_CAPABILITY or "ROCm" in about:
        return Finding(_GROUP, name, "ok", f"{detail}; bf16", "training and generation")
    detail += f"; capability {major}.{minor} is below 8.0: no bf16 in hardware, no flash attention"
    return Finding(
        _GROUP, name, "problem", detail, "train.precision=bf16", "misotune train RECIPE train.precision=fp32"
    )


def _collectives(torch: Answer) -> list[Finding]:
    """Returns what several ranks need to talk to one another."""
    if torch.error is not None:
        return []
    facts, purpose = torch.facts, "training on several GPUs or machines"
    if not facts["has_gpu"]:
        if facts["gloo"]:
            return [Finding(_GROUP, "collectives", "ok", "gloo", "several processes on the CPU: train --nproc")]
        return [Finding(_GROUP, "collectives", "missing", "this torch has no gloo", purpose, _reinstall_torch(None))]
    if "nccl" not in facts:
        return [Finding(_GROUP, "collectives", "missing", "this torch has no NCCL", purpose, _reinstall_torch(None))]
    adapters = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    settings = sorted(f"{key}={value}" for key, value in os.environ.items() if key.startswith("NCCL_"))
    parts = [f"NCCL {facts['nccl']}", f"InfiniBand or RoCE: {', '.join(adapters) or 'none'}", *settings]
    gpus = [gpu for gpu in facts["gpus"] if gpu["error"] is None]
    if len(gpus) > 1:
        has_peers = all(len(gpu["peers"]) == len(gpus) - 1 for gpu in gpus)
        parts.append("GPUs reach one another directly" if has_peers else "some GPUs talk by way of the host")
    return [Finding(_GROUP, "collectives", "ok", "; ".join(parts), purpose)]


def _driver() -> tuple[list[str], str | None]:
    """Returns the GPUs that the driver knows, and its version."""
    if shutil.which(_SMI[0]) is None:
        return [], None
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return [], None
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    return [row[0] for row in rows], rows[0][2] if rows else None
