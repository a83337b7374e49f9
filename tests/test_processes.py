import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from misotune import processes as processes_module
from misotune.errors import RunError
from misotune.processes import Processes

DRIVER = Path(__file__).with_name("process_driver.py")


def square(argument, jobs, send):
    send(f"{argument} is ready")
    for job in jobs:
        send(job**2)


def fail(argument, jobs, send):
    for job in jobs:
        if argument == "user":
            raise RunError(f"row {job} is no row")
        raise ZeroDivisionError(f"no {job}\nin two lines")


def ignore_the_end(argument, jobs, send):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send("deaf")
    time.sleep(100)


@pytest.fixture
def start():
    started = []

    def run(work, *arguments):
        named = [(f"worker {i} ({argument})", argument) for i, argument in enumerate(arguments)]
        started.append(Processes(work, named, cure="go on"))
        return started[-1]

    yield run
    for processes in started:
        processes.close()
    assert multiprocessing.active_children() == []


def receive(processes, number):
    found = []
    while len(found) < number:
        found.extend(processes.receive())
    return found


def test_each_does_the_jobs_that_it_is_given(start):
    processes = start(square, "a", "b")
    assert sorted(receive(processes, 2)) == [(0, "a is ready"), (1, "b is ready")]
    for number, job in ((0, 3), (1, 4), (0, 5)):
        processes.send(number, job)
    assert sorted(receive(processes, 3)) == [(0, 9), (0, 25), (1, 16)]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("user", "worker 1 (user): row 7 is no row; go on"),
        ("other", "worker 1 (other): ZeroDivisionError: no 7; go on"),
    ],
)
def test_an_error_is_one_line_with_the_process_and_the_cure_and_its_traceback_a_note(start, argument, message):
    processes = start(fail, "first", argument)
    processes.send(1, 7)
    with pytest.raises(RunError) as caught:
        processes.receive()
    assert str(caught.value) == message
    assert "in fail" in caught.value.__notes__[0]


def test_a_killed_process_is_named_with_the_signal(start):
    processes = start(square, "a", "b")
    receive(processes, 2)
    (victim,) = [p.process for p in processes._members if "b" in p.name]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"worker 1 \(b\) was killed by SIGKILL \(out of memory\?\); go on"):
        processes.receive()
    with pytest.raises(RunError, match="was killed by SIGKILL"):
        processes.send(1, 2)


def test_close_ends_even_one_that_takes_no_signal(start, monkeypatch):
    monkeypatch.setattr(processes_module, "_END_TIMEOUT_S", 0.2)
    processes = start(ignore_the_end, "a")
    receive(processes, 1)
    processes.close()
    assert multiprocessing.active_children() == []


def is_alive(pid: str) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_none_outlives_the_process_that_started_them(number):
    """Ctrl-C reaches all of them, as from a terminal; the others only the first."""
    driver = subprocess.Popen(
        [sys.executable, str(DRIVER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    pids = driver.stdout.readline().split()
    assert [is_alive(pid) for pid in pids] == [True, True]
    (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
    _, errors = driver.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))
    assert errors == ("interrupted\n" if number == signal.SIGINT else "")
