"""The disk that a run needs: how large a checkpoint is, and how many lie there at once."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GIB = 2**30

# The tokenizer, the configuration, the states of scheduler and random numbers: megabytes that no weight accounts for.
_SMALL_FILES = 16 * 2**20

# File systems round up, and reserve some room; a save that fails for the last megabyte is a save that fails.
_MARGIN = 1.02


def checkpoint_bytes(
    num_parameters: int, num_trained: int, *, is_bf16: bool, uses_deepspeed: bool, is_adapter: bool
) -> int:
    """Returns the size of one checkpoint, of all ranks together, in bytes; a little more than it comes to.

    Without DeepSpeed: the weights in float32 (an adapter's alone), and AdamW's two moments in float32. DeepSpeed
    writes the weights a second time in its own format, and its float32 master weights beside the moments.

    Args:
        num_parameters: All weights of the model, tied ones once.
        num_trained: Those that are trained.
        is_bf16: The recipe's precision.
        uses_deepspeed: Whether DeepSpeed writes it.
        is_adapter: Whether only an adapter is trained.
    """
    if uses_deepspeed:
        width = 2 if is_bf16 else 4
        weights = (num_trained if is_adapter else num_parameters) * width
        # transformers leaves an adapter's frozen weights out of DeepSpeed's files too.
        return 2 * weights + num_trained * 12 + _SMALL_FILES
    weights = (num_trained if is_adapter else num_parameters) * 4
    return weights + num_trained * 8 + _SMALL_FILES


def final_bytes(num_parameters: int, num_trained: int, *, is_bf16: bool, is_adapter: bool) -> int:
    """Returns the size of `final/` in bytes: the model in the format it was computed in, or the adapter in float32."""
    return (num_trained * 4 if is_adapter else num_parameters * (2 if is_bf16 else 4)) + _SMALL_FILES


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """What a run will have on the disk at once, in bytes.

    Attributes:
        checkpoint: One checkpoint.
        final: The trained model.
        kept: Checkpoints that stay.
        most: The most that lies there at any time: the kept ones beside the one that is being written, or beside
            the trained model.
        free: What is free where the run folder lies, with what the run's own earlier files will give back.
    """

    checkpoint: int
    final: int
    kept: int
    most: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.most <= self.free

    def as_dict(self) -> dict[str, Any]:
        """Returns the need as it stands in `plan.json`."""
        return {**asdict(self), "fits": self.fits}


def disk_needed(
    checkpoint: int,
    final: int,
    folder: Path,
    *,
    num_steps: int,
    save_every_steps: int | None,
    keep_checkpoints: int,
    has_trial_save: bool,
) -> DiskNeed:
    """Returns what a run needs of the disk.

    Args:
        checkpoint: Bytes of one checkpoint.
        final: Bytes of the trained model.
        folder: The run folder; it need not be there yet. What lies in it counts as free, since this run replaces it.
        num_steps: Optimizer steps of the run.
        save_every_steps: Steps between two checkpoints; None: none is planned, but a signal asks for one.
        keep_checkpoints: How many stay.
        has_trial_save: Whether one is written, read and deleted before the first step.
    """
    num_saves = 0 if save_every_steps is None else -(-num_steps // save_every_steps)
    kept = min(num_saves, keep_checkpoints)
    # The oldest is deleted when the newest is whole. Without any planned save there is still the one on a signal.
    most_checkpoints = kept + 1 if num_saves > keep_checkpoints else max(kept, 1)
    most = max(most_checkpoints * checkpoint, kept * checkpoint + final, checkpoint + final if has_trial_save else 0)
    return DiskNeed(checkpoint, final, kept, int(most * _MARGIN), free_bytes(folder) + folder_bytes(folder))


def free_bytes(folder: Path) -> int:
    """Returns what is free for this user on the disk of a folder that need not be there yet."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def folder_bytes(folder: Path) -> int:
    """Returns the bytes of all files in a folder; 0 if it is not there. Files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
        except FileNotFoundError:
            continue
    return total


def in_gib(number: float) -> str:
    """Returns bytes as people read them: `1.5 GiB`, below that `300 MiB`."""
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / 2**20:,.0f} MiB"
