"""A checkpoint is known to be whole by its manifest; what is left of one that is not is removed."""

import pytest

from misotune.training.saving.checkpoints import (
    checkpoint_problem,
    finish_checkpoint,
    last_whole_checkpoint,
    list_checkpoints,
    made_by,
    prune_checkpoints,
    remove_leftovers,
)


@pytest.fixture
def checkpoints(tmp_path):
    """The folder of checkpoints in a run folder."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


@pytest.fixture
def write(checkpoints):
    """Returns a function that writes the checkpoint of a step."""

    def make(step):
        written = checkpoints / f"checkpoint-{step}"
        (written / "global_step").mkdir(parents=True)
        (written / "model.safetensors").write_bytes(bytes([step]) * 1000)
        (written / "global_step" / "shard.pt").write_bytes(b"shard")
        assert finish_checkpoint(written, checkpoints / f"step-{step}", {"ranks": 2}) == 1005
        return checkpoints / f"step-{step}"

    return make


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_finished_checkpoint_is_whole_and_says_what_made_it(write):
    folder = write(1)
    assert checkpoint_problem(folder) is None
    assert made_by(folder) == {"ranks": 2}


BREAKAGES = {
    "cut": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is missing or of the wrong size"),
    "one bit": (lambda f: flip_a_bit(f / "model.safetensors"), "model.safetensors has changed"),
    "lost": (lambda f: (f / "global_step/shard.pt").unlink(), "global_step/shard.pt is missing or of the wrong size"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "it has no manifest"),
    "cut manifest": (lambda f: (f / "manifest.json").write_text("{"), "its manifest cannot be read"),
}


@pytest.mark.parametrize(("break_it", "problem"), BREAKAGES.values(), ids=BREAKAGES)
def test_broken_checkpoint_is_named_and_the_one_before_is_taken(write, checkpoints, break_it, problem):
    good, bad = write(9), write(10)
    break_it(bad)
    assert last_whole_checkpoint(checkpoints) == (good, [f"{bad} is skipped: {problem}"])


def test_newest_is_by_number_and_the_oldest_go_first(write, checkpoints):
    for step in (9, 10, 100):
        write(step)
    prune_checkpoints(checkpoints, 2)
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step-10", "step-100"]


def test_leftovers_of_a_killed_save_are_removed_and_named(write, checkpoints):
    whole = write(2)
    # Killed while it wrote; while it exchanged a folder without the kernel's help; while it deleted; in `final/`.
    (checkpoints / "checkpoint-4").mkdir()
    (checkpoints / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    whole.rename(checkpoints / ".step-2.old")
    (checkpoints / ".step-1.gone").mkdir()
    (checkpoints / ".trial").mkdir()
    partial_final = checkpoints.with_name(".final.partial")
    partial_final.mkdir()
    said = remove_leftovers(checkpoints, partial_final)
    why = "is removed: the process that wrote it was stopped before its end"
    assert sorted(said) == sorted(
        f"{path} {why}" for path in (partial_final, checkpoints / ".trial", checkpoints / "checkpoint-4")
    )
    assert not partial_final.exists()
    assert [path.name for path in checkpoints.iterdir()] == ["step-2"]
    assert checkpoint_problem(whole) is None
