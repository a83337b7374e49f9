"""A checkpoint before the first step: what would fail after hours fails now."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from misotune.errors import RunError
from misotune.runs import RunFolder
from misotune.training.disk import in_gib
from misotune.training.ranks.launch import is_main_process
from misotune.training.saving.checkpoints import checkpoint_problem
from misotune.training.saving.keeper import keep_checkpoint
from misotune.training.saving.reopening import check_tokenizer
from misotune.training.saving.together import saving, wait_for_all
from misotune.training.watching.events import record_event


class TrialSave(TrainerCallback):
    """Writes a whole checkpoint before the first step of a run, reads it back, and deletes it.

    It goes the way of all others, with the optimizer's state at its full size, and holds what `final/` will hold: the
    model with its configurations and the tokenizer. A resumed run has no trial: it was read from such a save.

    Args:
        run: The run.
        made: What checkpoints are made by.
    """

    def __init__(self, run: RunFolder, made: Mapping[str, Any]) -> None:
        self.run = run
        self.made = made
        self.trainer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called on every rank when model and optimizer are ready.

        Raises:
            SaveError: It cannot be saved; the message says why.
        """
        if state.global_step > 0:
            return
        start = time.monotonic()
        written, folder = self.run.checkpoints / "checkpoint-0", self.run.checkpoints / ".trial"
        try:
            with full_optimizer_state(self.trainer.optimizer):
                self.trainer._save_checkpoint(self.trainer.model, None)
                size = keep_checkpoint(written, folder, self.trainer.model, {**self.made, "step": 0})
            with saving(folder, "the trial checkpoint", size):
                if is_main_process():
                    check_tokenizer(folder, self.trainer.processing_class)
                    if problem := checkpoint_problem(folder):
                        raise RunError(problem)
        finally:
            # Also when a signal ends the run here. The ranks have left, or will raise the same.
            if is_main_process():
                for path in (written, folder):
                    shutil.rmtree(path, ignore_errors=True)
        wait_for_all()
        seconds = time.monotonic() - start
        record_event(self.run, "save", f"trial: {in_gib(size)} written, read back and deleted in {seconds:.1f} s")


@contextmanager
def full_optimizer_state(optimizer: Any) -> Iterator[None]:
    """Gives torch's AdamW the moments that it makes in its first step, for as long as the block lasts.

    Where DeepSpeed's ZeRO has made them already, nothing is done.

    Args:
        optimizer: As accelerate wraps it, and DeepSpeed below.
    """
    pieces: list[torch.Tensor] = []
    while hasattr(optimizer, "optimizer"):
        # ZeRO-3 keeps what torch's optimizer trains to itself between steps.
        pieces = getattr(optimizer, "fp32_partitioned_groups_flat", pieces)
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer) or optimizer.state:
        yield
        return
    for weight in pieces or [weight for group in optimizer.param_groups for weight in group["params"]]:
        optimizer.state[weight] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    try:
        yield
    finally:
        optimizer.state.clear()
