"""What ends a run early, on all ranks at the same step: a signal, or a number that is no longer finite."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from misotune.runs import RunFolder
from misotune.training.batches import MicroBatches


class StopGuard(TrainerCallback):
    """Stops a run.

    Args:
        run: The run folder.
        micro_batches: For the rows to name.
    """

    def __init__(self, run: RunFolder, micro_batches: MicroBatches) -> None:
        self.run = run
        self.micro_batches = micro_batches

    def observe(self, batch: Mapping[str, Any], losses: torch.Tensor) -> None:
        """Looks at a micro-batch's losses."""

    def check(self) -> None:
        """Raises what ended the run, after training returned."""
