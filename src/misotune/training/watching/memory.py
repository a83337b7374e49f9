"""The memory that a run holds."""

import ctypes
import resource
import sys
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class MemoryReturner(TrainerCallback):
    """Gives freed memory back to the system on a CPU: after every step, and within one where rows leave too much.

    Every row has a length of its own, so that glibc keeps what was freed in pieces that fit no later tensor: the
    quickstart's process grew from 4.4 to 6.0 GiB in 14 steps. Given back after every row, as much has to be had anew
    for the next: that took a tenth of the time. Within a step, the measure is what the first two steps leave: they
    hold the run's heaviest rows, and the second has the optimizer's state in memory too.
    """

    _STEPS_MEASURED = 2
    _GROWTH = 1.1

    def __init__(self) -> None:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._trim = None if torch.cuda.is_available() else trim  # glibc's; musl has none
        self._last_measured: int | None = None
        self._measure = 0

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after each micro-batch but a step's last."""
        if self._trim is None:
            return
        held = _resident_bytes()
        if self._last_measured is None:  # a resumed run measures its own first steps
            self._last_measured = state.global_step + self._STEPS_MEASURED
        if state.global_step < self._last_measured:
            self._measure = max(self._measure, held)
        elif held > self._GROWTH * self._measure:
            self._trim(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called after each optimizer step."""
        self.on_substep_end(args, state, control)
        if self._trim is not None:
            self._trim(0)


def _resident_bytes() -> int:
    """Returns the memory that the process holds now (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak_memory_gib() -> float:
    """Returns the most memory held so far, in GiB: of the CUDA device if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
