"""A disk that is really full, or fails: nothing half-written stays, and the last whole checkpoint does."""

import errno
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from tests.training.rank_driver import Case, train_on_ranks

from misotune.errors import RunError
from misotune.training.prepared import Watcher
from misotune.training.run import train
from misotune.training.saving.checkpoints import checkpoint_problem, list_checkpoints
from misotune.training.saving.final import save_final
from misotune.training.saving.saver import SavingTrainer
from misotune.training.saving.together import SaveError, _reason, check_room, saving

# The tiny model has 26,880 weights: its checkpoint takes some 340 kB with the tokenizer, of which 269 kB are the least.
# The plan reckons with more, and refuses to start where there is less than 50 MiB.
DISK_BYTES = 64 * 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs root: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, leave):
    """Writes a file that leaves so many bytes free."""
    with (folder / "filler").open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - leave)))


def recipe_on(make_recipe, disk, **train_settings):
    settings = {"max_steps": 6, "save_every_steps": 2, "keep_checkpoints": 2, **train_settings}
    return make_recipe(train=settings, output={"runs_dir": str(disk / "runs")})


# What lies on the disk when step 4 is saved: too little to begin with it; enough to begin, not to end; the room that
# the model takes, and nothing for the optimizer.
ROOM = {"none": 100_000, "for most of it": 300_000, "for all but the manifest": 334_000}


@pytest.mark.parametrize("room", ROOM.values(), ids=ROOM)
def test_full_disk_leaves_the_last_checkpoint_whole_and_says_how_much_is_needed(make_recipe, small_disk, room):
    recipe = recipe_on(make_recipe, small_disk)

    def fill_after_step_3(metrics):
        if metrics.step == 3:
            fill(small_disk, room)

    with pytest.raises(RunError) as caught:
        train(recipe, "name: test\n", watcher=Watcher(on_metrics=fill_after_step_3))
    message = str(caught.value)
    assert message.startswith("the checkpoint")
    assert "the disk is full" in message or "there is no room for it on the disk" in message
    assert "It needs 1" in message
    assert "MiB; 0 MiB are free in" in message
    assert message.endswith(
        "step-2 is whole; once there is room (train.keep_checkpoints=1 keeps fewer), go on: "
        "misotune train RECIPE --resume"
    )
    checkpoints = Path(recipe.output.runs_dir) / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-2"]
    assert checkpoint_problem(checkpoints / "step-2") is None
    (small_disk / "filler").unlink()
    assert train(recipe, "name: test\n", resume=True).is_finished()


def test_full_disk_is_noticed_before_the_first_step(make_recipe, small_disk):
    recipe = recipe_on(make_recipe, small_disk)
    steps = []
    watcher = Watcher(
        on_plan=lambda plan: fill(small_disk, 290_000),  # by now the plan has found room
        on_metrics=lambda metrics: steps.append(metrics.step),
    )
    with pytest.raises(
        RunError, match=r"the trial checkpoint could not be saved: .* go on: misotune train RECIPE --resume"
    ):
        train(recipe, "name: test\n", watcher=watcher)
    assert not steps
    assert list((Path(recipe.output.runs_dir) / "run" / "checkpoints").iterdir()) == []
    (small_disk / "filler").unlink()
    assert train(recipe, "name: test\n", overwrite=True).is_finished()


def test_full_disk_at_the_end_leaves_the_last_checkpoint(make_recipe, small_disk, monkeypatch):
    recipe = recipe_on(make_recipe, small_disk)

    def save_on_a_full_disk(*arguments, **options):
        fill(small_disk, 60_000)
        save_final(*arguments, **options)

    monkeypatch.setattr("misotune.training.run.save_final", save_on_a_full_disk)
    message = r"the trained model.* could not be saved: the disk is full\..* step-6 is whole; once there is room"
    with pytest.raises(RunError, match=message):
        train(recipe, "name: test\n")
    run = Path(recipe.output.runs_dir) / "run"
    assert not (run / "final").exists()
    assert not (run / ".final.partial").exists()
    (small_disk / "filler").unlink()
    monkeypatch.undo()
    assert train(recipe, "name: test\n", resume=True).is_finished()
    assert [folder.name for folder in list_checkpoints(run / "checkpoints")] == ["step-4", "step-6"]


def fill_before_the_second_save(rank):
    """Called in each rank before it trains. There is room for the weights then, and not for all ranks' shards."""
    save = SavingTrainer._save_checkpoint

    def fill_and_save(self, *arguments, **options):
        if rank == 0 and self.state.global_step == 2:
            fill(Path(os.environ["SMALL_DISK"]), 400_000)
        save(self, *arguments, **options)

    SavingTrainer._save_checkpoint = fill_and_save


def fail_on_rank_1(rank):
    """Called in each rank before it trains: the disk under rank 1 fails when its shard of step 2 is written."""
    save = TorchCheckpointEngine.save

    def fail_or_save(self, state_dict, path):
        if rank == 1 and "global_step2" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        save(self, state_dict, path)

    TorchCheckpointEngine.save = fail_or_save


@pytest.mark.distributed
@pytest.mark.slow
def test_shard_that_cannot_be_written_ends_all_ranks_alike(make_recipe, small_disk, tmp_path):
    settings = {"max_steps": 3, "save_every_steps": 1, "trial_save": False}
    output = {"runs_dir": str(small_disk / "runs")}
    here = "tests.training.saving.test_full_disk"
    cases = [
        Case(make_recipe(name, train=settings, deepspeed={"stage": 2}, output=output), before=f"{here}:{before}")
        for name, before in (("failing", "fail_on_rank_1"), ("full", "fill_before_the_second_save"))
    ]
    cases = [replace(case, environment={"SMALL_DISK": str(small_disk)}, timeout_s=60) for case in cases]
    for outcome, reason in zip(
        train_on_ranks(cases, tmp_path), ("the disk failed .*rank 1", "the disk is full"), strict=True
    ):
        assert outcome.codes == [1, 1]
        (error,) = {said.strip().splitlines()[-1] for said in outcome.said}
        assert re.match(rf"error: the checkpoint of step 2 could not be saved: {reason}", error)
        assert "step-1 is whole; once" in error
        assert [path.name for path in outcome.run.checkpoints.iterdir()] == ["step-1"]
        assert checkpoint_problem(outcome.run.checkpoints / "step-1") is None


def test_reasons_are_found_in_every_library_s_own_exception(tmp_path):
    class SafetensorError(Exception):
        pass

    cases = {
        OSError(errno.EDQUOT, "quota"): "the disk quota is used up",
        OSError(errno.EIO, "io"): "the disk failed (input/output error)",
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ): "the disk is full",
        RuntimeError("[enforce fail] unexpected pos 64 vs 0"): "RuntimeError: [enforce fail] unexpected pos 64 vs 0",
    }
    assert {_reason(error, tmp_path) for error in cases} == set(cases.values())
    wrapped = RuntimeError("write failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert _reason(wrapped, tmp_path) == "the disk is full"


def test_torch_s_error_without_a_number_is_explained_by_trying(small_disk):
    fill(small_disk, 100_000)
    with pytest.raises(RuntimeError) as caught:
        torch.save(torch.zeros(100_000), small_disk / "optimizer.pt")
    assert _reason(caught.value, small_disk) == "the disk is full"
    assert not list(small_disk.glob(".probe*"))


def test_failed_save_is_removed_and_others_are_left_alone(tmp_path):
    written = tmp_path / "checkpoint-4"
    written.mkdir()
    (written / "half").write_bytes(b"half")
    (tmp_path / "step-2").mkdir()
    with (
        pytest.raises(SaveError, match=r"the checkpoint of step 4 could not be saved: the disk failed .*\. step-2 is"),
        saving(written, "the checkpoint of step 4", 5),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_save_without_room_is_not_begun(tmp_path):
    with pytest.raises(SaveError, match=r"there is no room for it on the disk\. It needs 2,048.0 GiB; .* are free in"):
        check_room(tmp_path / "checkpoint-4", "the checkpoint of step 4", 2**60, 2**41)
