"""The memory that a run holds."""

import ctypes
import resource
import sys
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class MemoryReturner(TrainerCallback):
    """Gives freed memory back to the system after every micro-batch on a CPU.

    Every row has a length of its own, so that glibc keeps what was freed in pieces that fit no later tensor: the
    quickstart's process grew from 4.4 to 6.0 GiB in 14 steps.
    """

    def __init__(self) -> None:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._trim = None if torch.cuda.is_available() else trim  # glibc's; musl has none

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after each micro-batch but a step's last."""
        if self._trim is not None:
            self._trim(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called after each optimizer step."""
        self.on_substep_end(args, state, control)


def peak_memory_gib() -> float:
    """Returns the most memory held so far, in GiB: of the CUDA device if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
