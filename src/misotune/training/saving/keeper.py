"""When a checkpoint is whole, and which stay."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from misotune.errors import RunError
from misotune.runs import RunFolder
from misotune.storage import sync_folder
from misotune.training.disk import folder_bytes, in_gib
from misotune.training.ranks.launch import is_main_process
from misotune.training.saving.checkpoints import finish_checkpoint, prune_checkpoints
from misotune.training.saving.reopening import check_optimizer, check_shard, check_weights
from misotune.training.saving.resuming import own_steps, remove_universal
from misotune.training.saving.together import gather_objects, rank_number, saving, wait_for_all
from misotune.training.watching.events import record_event


class CheckpointKeeper(TrainerCallback):
    """Reads a checkpoint back, names it `step-N` once it is whole, and deletes the oldest.

    Args:
        run: The run.
        keep: Newest checkpoints to keep.
        made: What checkpoints are made by, for their manifest.
    """

    def __init__(self, run: RunFolder, keep: int, made: Mapping[str, Any]) -> None:
        self.run = run
        self.keep = keep
        self.made = made

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called on every rank when a checkpoint to go on from is loaded."""
        own_steps(kwargs["optimizer"])
        wait_for_all()
        if is_main_process():
            remove_universal(self.run.checkpoints)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called on every rank when transformers has written `checkpoint-N`."""
        start = time.monotonic()
        folder = self.run.checkpoints / f"step-{state.global_step}"
        size = keep_checkpoint(
            self.run.checkpoints / f"checkpoint-{state.global_step}",
            folder,
            kwargs["model"],
            {**self.made, "step": state.global_step},
        )
        if is_main_process():
            prune_checkpoints(self.run.checkpoints, self.keep)
            seconds = time.monotonic() - start
            record_event(self.run, "save", f"{folder.name}: {in_gib(size)}, read back in {seconds:.1f} s")


def keep_checkpoint(written: Path, folder: Path, model: Any, made: Mapping[str, Any]) -> int:
    """Gives a checkpoint its name, once all ranks' files are on the disk and read back as they should be.

    Args:
        written: Where it was written to.
        folder: Its name.
        model: The live model.
        made: What it was made by.

    Returns:
        Its size in bytes, on the main rank.

    Raises:
        SaveError: It is not what was to be saved, or could not be finished; it is removed.
    """
    size = folder_bytes(written)
    with saving(written, f"the checkpoint in {folder.name}", size):
        sync_folder(written)  # each host has its own files in its cache
    with saving(written, f"the checkpoint in {folder.name}", size):
        check_weights(written, model)
        if (written / "optimizer.pt").is_file() and is_main_process():
            check_optimizer(written / "optimizer.pt", model)
    if made["engine"] == "deepspeed" and made["stage"] > 0:
        with saving(written, f"the checkpoint in {folder.name}", size):
            _check_shards(written, model, made["ranks"])
    with saving(written, f"the checkpoint in {folder.name}", size):
        if is_main_process():
            size = finish_checkpoint(written, folder, made)
    return size


def _check_shards(written: Path, model: Any, num_ranks: int) -> None:
    """Checks this rank's shard; then that all together hold master weights and two moments of all trained weights."""
    problem: RunError | None = None
    number = 0
    try:
        number = check_shard(written, rank_number(), num_ranks)
    except RunError as error:
        problem = error
    numbers = gather_objects(number)
    if problem is not None:
        raise problem
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    if all(numbers) and sum(numbers) < 3 * trained:
        raise RunError(f"the ranks' files hold {sum(numbers):,} numbers, and {3 * trained:,} are needed")
