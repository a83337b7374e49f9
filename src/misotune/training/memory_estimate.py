"""The memory that a run needs on each device, by component, before a weight is loaded."""

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from misotune.training.memory_trace import ACTIVATIONS, GRADIENTS, LOGITS, WEIGHTS, Traced

OPTIMIZER, PROCESS = "optimizer", "process"

# AdamW's two moments in float32.
_MOMENTS = 8

# What a CUDA context and its libraries' work space take of a device beside all tensors.
_CUDA_CONTEXT = 700 * 2**20

# On the CPU: pages of torch's libraries that only training touches, thread stacks, oneDNN's and MKL's buffers.
_LIBRARIES = 50 * 2**20

# Cgroups write a number near 2**63 for "no limit".
_NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a model's state is shared out among devices.

    Attributes:
        num_devices: Devices that train together.
        zero_stage: DeepSpeed's, 0 to 3; None: without DeepSpeed.
        offload: What is in the host's memory: `none`, `optimizer`, `parameters`.
        is_bf16: Whether stages 1 to 3 hold weights and gradients in bfloat16.
        zero: DeepSpeed's section `zero_optimization`, for the sizes of its buffers.
    """

    num_devices: int = 1
    zero_stage: int | None = None
    offload: str = "none"
    is_bf16: bool = False
    zero: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The most memory that training holds, in bytes.

    Attributes:
        device: Where the components lie: `cpu`, or the GPU's name.
        components: On each device: weights, gradients, optimizer, activations, logits, process.
        host: On the host for each rank, where the device is a GPU and something is offloaded.
        limit: What a device has; on the CPU, what this machine or container has for each local rank. None: unknown.
        row: Tokens, trained tokens and step of the row that needs the most.
    """

    device: str
    components: dict[str, int]
    host: dict[str, int] = field(default_factory=dict[str, int])
    limit: int | None = None
    row: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def total(self) -> int:
        """All components on a device."""
        return sum(self.components.values())

    @property
    def fits(self) -> bool | None:
        """Whether the device has so much; None: its size is not known."""
        return None if self.limit is None else self.total <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """Returns the estimate as it stands in `plan.json`."""
        return {**asdict(self), "total": self.total, "fits": self.fits}


def estimate_memory(
    traced: Traced, sharing: Sharing, *, device: torch.device, local_ranks: int, row: Mapping[str, int]
) -> MemoryEstimate:
    """Returns the memory of training from what one pass of its largest row holds.

    Args:
        traced: The pass.
        sharing: How the model's state is shared out.
        device: Where training runs.
        local_ranks: Ranks that share this machine.
        row: What the row is, for the reader.
    """
    on_device, on_host = _state(traced, sharing)
    is_cpu = device.type == "cpu"
    if is_cpu:  # there is but one memory
        on_device = {name: size + on_host.get(name, 0) for name, size in on_device.items()}
        on_host = {}
        on_device[PROCESS] = resident_bytes() + _LIBRARIES + traced.gaps
    else:
        on_device[PROCESS] = _CUDA_CONTEXT
    return MemoryEstimate(
        device="cpu" if is_cpu else torch.cuda.get_device_name(device),
        components=on_device,
        host=on_host,
        limit=host_memory() // local_ranks if is_cpu else torch.cuda.get_device_properties(device).total_memory,
        row=dict(row),
    )


def _state(traced: Traced, sharing: Sharing) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the components on the device, and what of them is offloaded to the host."""
    trained = traced.num_trained
    if sharing.zero_stage:
        return _zero_state(traced, sharing, sharing.zero_stage)
    components = {**traced.peak, OPTIMIZER: _MOMENTS * trained}
    if sharing.num_devices > 1:  # DistributedDataParallel sums copies of the gradients, DeepSpeed some at a time
        copied = trained if sharing.zero_stage is None else min(_bucket(sharing), trained)
        components[GRADIENTS] += 4 * copied
    return _in_order(components), {}


def _zero_state(traced: Traced, sharing: Sharing, stage: int) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the same for stages 1 to 3 (Rajbhandari et al. 2020, figure 1), with DeepSpeed's buffers."""
    trained, devices = traced.num_trained, sharing.num_devices
    width = 2 if sharing.is_bf16 else 4
    weights = traced.num_parameters * width
    if stage == 3:
        # Beside a device's part, the weights that are gathered for use; DeepSpeed drops them above a limit.
        gathered = min(traced.num_parameters, int(sharing.zero.get("stage3_max_live_parameters", 1e9))) * width
        weights = weights // devices + gathered
    # Gradients are summed in float32 beyond stage 1, and each device keeps its part of them.
    gradients = trained * width if stage == 1 else trained * 4 // devices
    components = {
        WEIGHTS: weights,
        GRADIENTS: gradients + min(_bucket(sharing), trained) * width,
        OPTIMIZER: (4 + _MOMENTS) * trained // devices,
        ACTIVATIONS: traced.most_activations - traced.logits_then,
        LOGITS: traced.logits_then,
    }
    host: dict[str, int] = {}
    if sharing.offload != "none":
        host[OPTIMIZER], components[OPTIMIZER] = components[OPTIMIZER], 0
    if sharing.offload == "parameters":
        part = traced.num_parameters * width // devices
        host[WEIGHTS], components[WEIGHTS] = part, components[WEIGHTS] - part
    return _in_order(components), host


def _bucket(sharing: Sharing) -> int:
    """Returns how many gradients DeepSpeed collects before it sums them over devices."""
    size = sharing.zero.get("reduce_bucket_size", 500_000_000)
    return int(size) if isinstance(size, int | float) else 500_000_000


def _in_order(components: Mapping[str, int]) -> dict[str, int]:
    return {name: components[name] for name in (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS)}


def resident_bytes() -> int:
    """Returns the memory that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    except OSError:  # not Linux: the most it has held so far
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024)


def host_memory(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the memory of this machine in bytes, or what its container may have of it.

    Args:
        root: Where control groups are mounted, of version 1 or 2.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _NO_LIMIT:
            limits.append(int(text))
    return min(limits)
