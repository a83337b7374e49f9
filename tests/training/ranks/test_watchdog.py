"""A run that stands still is ended, and one that only takes its time is not."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from tests.training.rank_driver import Case, train_on_ranks
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from misotune.training.ranks import watchdog
from misotune.training.ranks.board import Standing
from misotune.training.ranks.standstill import describe_standstill
from misotune.training.ranks.store import Place
from misotune.training.ranks.watchdog import Watchdog

TIMEOUT_S = 1.2


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(watchdog, "_GRACE_S", 3.0)
    monkeypatch.setattr(watchdog, "_FAREWELL_S", 0.5)


class Watched:
    """A watchdog whose process does not end, in a run folder of its own kind."""

    def __init__(self, folder: Path, rank: int = 0, world_size: int = 1, store: TCPStore | None = None) -> None:
        self.codes: list[int] = []
        self.stops: list[str] = []
        self.has_ended = threading.Event()
        port = store.port if store else 0
        self.dog = Watchdog(
            folder / "stacks",
            TIMEOUT_S / 60,
            on_stop=self.stops.append,
            place=Place(rank, rank, world_size, "abc"[rank]),
            open_notes=lambda: PrefixStore(
                "notes", TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=5))
            ),
            leave=self._leave,
        )

    def _leave(self, code: int) -> None:
        self.codes.append(code)
        self.has_ended.set()


def test_one_process_without_progress_ends_with_its_stack(tmp_path, capfd):
    watched = Watched(tmp_path)
    with watched.dog:
        watched.dog._enter("step 3 of 8", is_in_step=True)
        assert watched.has_ended.wait(20)
    assert watched.codes == [1]
    assert "test_one_process_without_progress" in (tmp_path / "stacks" / "rank-0.txt").read_text()
    said = capfd.readouterr().err
    assert "error: the run stands still: no progress for 1.2 s (train.timeout_minutes), step 3 of 8" in said
    assert "start again with the same command" in said
    assert [message in said for message in watched.stops] == [True]


def test_progress_of_any_kind_keeps_a_run(tmp_path):
    watched = Watched(tmp_path)
    with watched.dog:
        watched.dog._enter("step 1 of 8", is_in_step=True)
        for _ in range(10):
            assert not watched.has_ended.wait(0.3)
            watched.dog.mark()
    assert watched.codes == []


@pytest.mark.parametrize("is_in_step", [False, True], ids=["saving", "in a step"])
def test_writing_is_progress_outside_of_steps_alone(tmp_path, is_in_step):
    watched = Watched(tmp_path)
    deadline = time.monotonic() + 2.5 * TIMEOUT_S
    with watched.dog, (tmp_path / "weights").open("wb", buffering=0) as file:
        watched.dog._enter("somewhere", is_in_step=is_in_step)
        while time.monotonic() < deadline and not watched.has_ended.is_set():
            file.write(b"0" * 2**21)
            time.sleep(0.1)
    assert watched.codes == ([1] if is_in_step else [])


def test_all_ranks_end_and_the_lowest_says_who_is_behind(tmp_path, store, capfd):
    ranks = [Watched(tmp_path, rank, 3, store) for rank in range(3)]
    (tmp_path / "recipe.yaml").touch()
    for watched in ranks:
        watched.dog.__enter__()
        watched.dog._enter("step 3 of 8", is_in_step=True)
    for watched in (ranks[0], ranks[2]):
        watched.dog.observe({}, torch.ones(1))
    assert all(watched.has_ended.wait(30) for watched in ranks)
    for watched in ranks:
        watched.dog.__exit__(None, None, None)
    assert [watched.codes for watched in ranks] == [[1], [1], [1]]
    said = capfd.readouterr().err
    assert said.count("the run stands still") == 1
    assert "missing: rank 1 on b is behind, step 3 of 8, after 0 micro-batches, at " in said
    assert "waiting: ranks 0, 2 at " in said
    assert f"go on: misotune train {tmp_path}/recipe.yaml --resume" in said
    assert {path.name for path in (tmp_path / "stacks").iterdir()} == {"rank-0.txt", "rank-1.txt", "rank-2.txt"}
    assert [len(watched.stops) for watched in ranks] == [1, 0, 0]


def test_a_rank_that_gets_further_keeps_those_that_wait_for_it(tmp_path, store):
    ranks = [Watched(tmp_path, rank, 2, store) for rank in range(2)]
    with ranks[0].dog, ranks[1].dog:
        for _ in range(12):
            assert not ranks[1].has_ended.wait(0.3)  # three times its own time-out
            ranks[0].dog.mark()
    assert [watched.codes for watched in ranks] == [[], []]


def test_a_rank_that_never_shows_itself_is_named_and_keeps_nobody(tmp_path, store, capfd):
    watched = Watched(tmp_path, 1, 3, store)
    other = Watched(tmp_path, 0, 3, store)
    with watched.dog, other.dog:
        assert watched.has_ended.wait(30)
        assert other.has_ended.wait(30)
    assert "missing: rank 2 has never been seen" in capfd.readouterr().err


def test_a_rank_that_left_is_named(tmp_path, store, capfd):
    stays, leaves = (Watched(tmp_path, rank, 2, store) for rank in range(2))
    with stays.dog:
        with leaves.dog:
            time.sleep(0.5)
        assert stays.has_ended.wait(30)
    assert leaves.codes == []
    assert "missing: rank 1 on b has left" in capfd.readouterr().err


def test_without_the_store_each_host_speaks_for_itself(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "gpu1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    watched = Watched(tmp_path, 1, 2, store)
    with watched.dog:
        time.sleep(0.5)
        del store
        assert watched.has_ended.wait(30)
    said = capfd.readouterr().err
    assert "the ranks' store at gpu1:29500 does not answer" in said
    assert "rank-N.txt" in said


def test_stacks_that_cannot_be_written_are_no_hindrance(tmp_path, capfd):
    (tmp_path / "stacks").write_text("a file in the folder's place")
    watched = Watched(tmp_path)
    with watched.dog:
        assert watched.has_ended.wait(20)
    assert "stacks of rank 0: not written: " in capfd.readouterr().err


def test_many_ranks_are_told_in_few_words():
    standings = [
        Standing(rank, f"gpu{rank // 8}", marks=9 - (rank == 5), where="a.py:1 in f", stacks="s.txt")
        for rank in range(62)
    ]
    text = describe_standstill(standings, world_size=64, timeout_s=1800, folder=Path("runs/x/stacks"))
    assert "no progress for 30 minutes" in text
    assert "missing: rank 62 has never been seen, rank 63 has never been seen, rank 5 on gpu0 is behind" in text
    assert "waiting: ranks 0-4, 6-61 at a.py:1 in f" in text
    assert len(text.splitlines()) == 1


PAUSED = """
import sys, time
from pathlib import Path
from misotune.training.ranks.watchdog import Watchdog
with Watchdog(Path(sys.argv[1]), 1 / 60) as dog:
    Path(sys.argv[1]).parent.joinpath("started").touch()
    for _ in range(8):
        for _ in range(10):  # one long sleep would end, and mark, at once after the stop
            time.sleep(0.05)
        dog.mark()
print("through")
"""


@pytest.mark.slow
def test_time_in_which_the_process_was_stopped_does_not_count(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED, str(tmp_path / "stacks")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said) == (0, b"through\n"), errors


def hang_in_rank_1(rank: int) -> None:
    """Run before a rank trains: rank 1 hangs in its third micro-batch."""
    from misotune.training.stopping import StopGuard

    observe, seen = StopGuard.observe, []

    def hangs(self, batch, losses):
        seen.append(batch["index"])
        if len(seen) == 3:
            time.sleep(3600)
        observe(self, batch, losses)

    if rank == 1:
        StopGuard.observe = hangs


def stop_rank_1(rank: int) -> None:
    """Run before a rank trains: rank 1 is stopped from outside in its third micro-batch."""
    from misotune.training.stopping import StopGuard

    observe, seen = StopGuard.observe, []

    def stops(self, batch, losses):
        seen.append(batch["index"])
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        observe(self, batch, losses)

    if rank == 1:
        StopGuard.observe = stops


def save_slowly(rank: int) -> None:
    """Run before a rank trains: rank 0 takes longer to write each checkpoint than a rank may stand still."""
    from misotune.training.saving.keeper import CheckpointKeeper

    on_save = CheckpointKeeper.on_save

    def slow(self, args, state, control, **kwargs):
        with (Path(args.output_dir) / "slow").open("wb", buffering=0) as file:
            for _ in range(10):
                file.write(b"0" * 2**21)
                time.sleep(1.0)
        on_save(self, args, state, control, **kwargs)

    if rank == 0:
        CheckpointKeeper.on_save = slow


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_that_hang_end_and_a_slow_disk_does_not_end_them(make_recipe, tmp_path):
    settings = {"max_steps": 3, "save_every_steps": 1, "timeout_minutes": 0.1, "trial_save": False}
    module = "tests.training.ranks.test_watchdog"
    slow = {**settings, "save_every_steps": 2, "max_steps": 2}
    hung, stopped, slow = train_on_ranks(
        [
            Case(make_recipe("hung", train=settings), before=f"{module}:hang_in_rank_1"),
            Case(make_recipe("stopped", train=settings), before=f"{module}:stop_rank_1"),
            Case(make_recipe("slow", train=slow), before=f"{module}:save_slowly"),
        ],
        tmp_path,
    )
    assert hung.codes == [1, 1], hung.said
    assert hung.said[0].count("the run stands still: no progress for 6 s") == 1, hung.said
    assert "missing: rank 1 on " in hung.said[0]
    assert " in hangs; waiting: rank 0 at " in hung.said[0]
    assert "in hangs" in (hung.run.stacks / "rank-1.txt").read_text()
    assert "compute_loss" in (hung.run.stacks / "rank-0.txt").read_text()
    assert "the run stands still" in hung.run.events.read_text()
    assert "the run stands still" not in hung.said[1]

    assert stopped.codes == [1, -signal.SIGKILL], stopped.said
    assert "missing: rank 1 on " in stopped.said[0]
    assert "is silent (stopped, dead or out of reach), last seen " in stopped.said[0]
    assert [path.name for path in stopped.run.stacks.iterdir()] == ["rank-0.txt"]
    assert f"go on: misotune train {stopped.run.recipe} --resume" in stopped.said[0]

    assert slow.codes == [0, 0], slow.said
    assert slow.seconds > 10
