"""When a checkpoint is written, and which stay."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from misotune.training.saving.checkpoints import finish_checkpoint, prune_checkpoints


class CheckpointKeeper(TrainerCallback):
    """Names a checkpoint `step-N` once it is whole, and deletes the oldest.

    Args:
        folder: The run's checkpoints.
        keep: Newest checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called on every rank when transformers has written `checkpoint-N`."""
        _barrier()
        if state.is_world_process_zero:
            written = self.folder / f"checkpoint-{state.global_step}"
            finish_checkpoint(written, self.folder / f"step-{state.global_step}")
            prune_checkpoints(self.folder, self.keep)
        _barrier()


def _barrier() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
