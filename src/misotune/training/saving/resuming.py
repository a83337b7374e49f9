"""From which checkpoint a run goes on, and whether it can with this recipe on this number of ranks."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from misotune.errors import RunError, UsageError
from misotune.runs import RunFolder
from misotune.storage import recover_folder
from misotune.training.disk import folder_bytes, free_bytes, in_gib
from misotune.training.ranks.launch import is_main_process
from misotune.training.saving.checkpoints import PARTIAL_FINAL, last_whole_checkpoint, made_by, remove_leftovers
from misotune.training.saving.together import main_rank_value

UNIVERSAL = ".universal"
_WORKERS = 4
# transformers reads these beside DeepSpeed's folder; seeds of the generators are those of another number of ranks.
_OF_TRANSFORMERS = ("trainer_state.json", "scheduler.pt")


def find_checkpoint(
    run: RunFolder, on_message: Callable[[str], None] | None = None, *, only_looks: bool = False
) -> Path | None:
    """Returns the newest whole checkpoint, None before the first; on the main rank, leftovers of a kill are removed.

    All ranks call it before they talk to one another, and read the same files at the same time: so none waits for the
    main one, whose choice counts in the end (`agreed_checkpoint`).

    Args:
        run: The run; the main rank holds its lock.
        on_message: Told what was skipped or removed, on the main rank.
        only_looks: Compare sizes, not hashes, and remove nothing: the look before ranks start leaves it to them.

    Raises:
        UsageError: There is no run, none of its checkpoints is whole, or it is finished; on the main rank.
    """
    if not is_main_process():
        return last_whole_checkpoint(run.checkpoints)[0]
    recover_folder(run.final)
    if run.is_finished():
        raise UsageError(f"{run.path} is finished; there is nothing to resume")
    removed = remove_leftovers(run.checkpoints, run.path / PARTIAL_FINAL) if not only_looks else []
    checkpoint, skipped = last_whole_checkpoint(run.checkpoints, reads_files=not only_looks)
    if checkpoint is None and not skipped and run.recipe.is_file():
        # It was stopped before its first save: a job that always resumes must not fail for ever.
        if on_message:
            for line in [*removed, f"{run.path} has no checkpoint yet: it starts at step 0"]:
                on_message(line)
        return None
    if checkpoint is None:
        raise UsageError(
            f"{run.path} has no whole checkpoint to resume from{': ' if skipped else ''}{'; '.join(skipped)}"
            f"{'; --overwrite starts the run anew' if skipped else ''}"
        )
    if on_message:
        for line in [*removed, *skipped, f"resuming from {checkpoint}"]:
            on_message(line)
    return checkpoint


def check_can_go_on(checkpoint: Path, made: Mapping[str, Any], on_message: Callable[[str], None] | None = None) -> None:
    """Refuses to go on from a checkpoint that was made with other settings, or by an engine that cannot read it.

    Args:
        checkpoint: A whole checkpoint.
        made: What checkpoints are made by now.
        on_message: Told when it was made on another number of ranks, or by another ZeRO stage.

    Raises:
        UsageError: It cannot be gone on with.
    """
    before = made_by(checkpoint)
    if not before:  # of an older version, which did not record it
        return
    for key, value in before["settings"].items():
        if value != made["settings"].get(key):
            # Some would be ignored, for they lie in the checkpoint; others would change what was begun.
            raise UsageError(
                f"{checkpoint} cannot go on with another {key}: it was {value!r}, now it is "
                f"{made['settings'].get(key)!r}; resume with the run's own recipe, or start anew with name=OTHER"
                f"{_from_weights(checkpoint)}"
            )
    if before["engine"] != made["engine"] or (before["stage"] != made["stage"] and not _needs_conversion(before, made)):
        raise UsageError(
            f"{checkpoint} was made by {_engine_name(before)}, and {_engine_name(made)} cannot read its optimizer; "
            f"resume with the deepspeed section as it was, or start anew with name=OTHER{_from_weights(checkpoint)}"
        )
    if on_message and (before["stage"], before["ranks"]) != (made["stage"], made["ranks"]):
        on_message(
            f"{checkpoint.name} was made on {before['ranks']} rank(s) by {_engine_name(before)}; "
            f"now {made['ranks']} go on by {_engine_name(made)}"
        )


def agreed_checkpoint(checkpoint: Path | None, made: Mapping[str, Any]) -> Path | None:
    """Returns the folder that all ranks load; what the main rank must convert for it is converted.

    Args:
        checkpoint: What `find_checkpoint` found on this rank.
        made: What checkpoints are made by now.

    Raises:
        RunError: It cannot be converted.
    """
    problem = None
    if is_main_process() and checkpoint is not None and _needs_conversion(made_by(checkpoint), made):
        try:
            checkpoint = universal_checkpoint(checkpoint)
        except (RunError, OSError) as error:
            problem = str(error)
    checkpoint, problem = main_rank_value((checkpoint, problem))
    if problem is not None:
        raise RunError(problem)
    return checkpoint


def is_universal(checkpoint: Path | None) -> bool:
    """Returns whether a checkpoint is a converted one, which DeepSpeed must be told."""
    return checkpoint is not None and checkpoint.name.startswith(UNIVERSAL)


def universal_checkpoint(checkpoint: Path) -> Path:
    """Converts a ZeRO checkpoint to DeepSpeed's form for any stage and number of ranks, beside it.

    Raises:
        RunError: The disk has no room, or DeepSpeed cannot do it.
    """
    folder = checkpoint.with_name(f"{UNIVERSAL}-{checkpoint.name}")
    shutil.rmtree(folder, ignore_errors=True)
    (shards,) = checkpoint.glob("global_step*")
    # Every rank's pieces are written apart, and then joined.
    needed, free = 2 * folder_bytes(shards), free_bytes(checkpoint)
    if free < needed:
        raise RunError(
            f"{checkpoint} must be converted for another number of ranks or ZeRO stage, and that takes "
            f"{in_gib(needed)} of {checkpoint.parent}, where {in_gib(free)} are free; "
            "make room, or resume as it was made"
        )
    folder.mkdir()
    # A process of its own: it forks workers, which this one may not while its threads talk to other ranks.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"),
            *("--input_folder", str(shards), "--output_folder", str(folder / shards.name)),
            *("--num_extract_workers", str(_WORKERS), "--num_merge_workers", str(_WORKERS)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        reason = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise RunError(f"DeepSpeed cannot convert {checkpoint}: {reason}; resume on as many ranks as before")
    for name in _OF_TRANSFORMERS:
        shutil.copy2(checkpoint / name, folder / name)
    return folder


def own_steps(optimizer: Any) -> None:
    """Gives every weight's state a count of steps of its own, after a converted checkpoint was loaded.

    DeepSpeed gives all parts of a ZeRO-3 optimizer the same tensor, so that each part would count for all (0.19.8).

    Args:
        optimizer: As accelerate wraps it, and DeepSpeed below.
    """
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def remove_universal(checkpoints: Path) -> None:
    """Removes converted checkpoints, which all ranks have loaded."""
    for path in checkpoints.glob(f"{UNIVERSAL}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _needs_conversion(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if not before or before["engine"] != "deepspeed" or now["engine"] != "deepspeed":
        return False
    if (before["stage"], before["ranks"]) == (now["stage"], now["ranks"]):
        return False
    # DeepSpeed's stages 1 and 2 read one another's, stage 3 its own. Without ZeRO every rank has everything.
    return {before["stage"], now["stage"]} <= {1, 2} or before["stage"] == now["stage"] == 3


def _from_weights(checkpoint: Path) -> str:
    has_model = (checkpoint / "config.json").is_file()
    return f" (from these weights: model.name={checkpoint})" if has_model else ""


def _engine_name(made: Mapping[str, Any]) -> str:
    return f"DeepSpeed ZeRO-{made['stage']}" if made["engine"] == "deepspeed" else "a run without DeepSpeed"
