"""A run folder belongs to one process at a time, and to nobody when that process is dead."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from misotune.errors import UsageError
from misotune.training.run import train
from misotune.training.saving.locking import lock_path, lock_run

HOLDER = """
import sys, time
from pathlib import Path
from misotune.training.saving.locking import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(run):
    """A process that holds the run."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_run_in_use_is_refused_by_process_host_and_time_until_its_holder_is_killed(tmp_path):
    run = tmp_path / "run"
    with holder(run) as process:
        message = rf"run is in use by process {process.pid} on {os.uname().nodename} since 20\d\d-.*; wait for it, or"
        with pytest.raises(UsageError, match=message), lock_run(run):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with lock_run(run):
        assert json.loads(lock_path(run).read_text())["pid"] == os.getpid()
    assert not lock_path(run).exists()


def test_training_refuses_a_run_in_use_and_overwrites_nothing_of_it(make_recipe, tmp_path):
    recipe = make_recipe(train={"max_steps": 1})
    run = train(recipe, "name: test\n")
    before = sorted(path.name for path in run.path.iterdir())
    with holder(run.path):
        for options in ({"overwrite": True}, {"resume": True}, {}):
            with pytest.raises(UsageError, match="is in use by process"):
                train(recipe, "name: test\n", **options)
    assert sorted(path.name for path in run.path.iterdir()) == before
    assert train(recipe, "name: test\n", overwrite=True).is_finished()


def test_lock_that_was_removed_by_its_last_holder_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it, its last holder deletes it."""
    run, flock, opened = tmp_path / "run", fcntl.flock, []

    def slow_flock(descriptor, operation):
        if not opened:
            lock_path(run).unlink()
        opened.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow_flock)
    with lock_run(run):
        assert len(opened) == 2
        assert os.path.samestat(os.fstat(opened[1]), lock_path(run).stat())


def test_file_system_without_locks_is_said_so(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    said = []
    with lock_run(tmp_path / "run", said.append):
        assert said == [
            f"{tmp_path}: its file system has no locks; see to it that no other process trains {tmp_path / 'run'}"
        ]
