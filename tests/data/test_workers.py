import multiprocessing
import os
import signal
import time

import pytest

from misotune.data.workers import map_in_order
from misotune.errors import RunError


def squared(number):
    return number * number


def with_process(number):
    return number, os.getpid()


def killing_its_process(number):
    if number == 400 and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def failing(number):
    if number == 400:
        raise ZeroDivisionError("row 400")
    return number


def slow_now_and_then(number):
    if number % 150 == 0:
        time.sleep(0.01)
    return number


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_results_come_in_order_whatever_the_number_of_workers(workers):
    assert list(map_in_order(squared, range(1000), workers)) == [n * n for n in range(1000)]


def test_order_holds_when_chunks_take_different_times():
    assert list(map_in_order(slow_now_and_then, range(1500), 2)) == list(range(1500))


def test_the_work_is_done_in_other_processes_and_the_first_items_in_this_one():
    done = list(map_in_order(with_process, range(2000), 2))
    others = {process for _, process in done} - {os.getpid()}
    assert [number for number, _ in done] == list(range(2000))
    assert 1 <= len(others) <= 2
    assert done[0][1] == os.getpid()


def test_few_items_start_no_process():
    assert {process for _, process in map_in_order(with_process, range(200), 2)} == {os.getpid()}


def test_items_are_read_only_a_little_ahead():
    read = []

    def items():
        for number in range(100_000):
            read.append(number)
            yield number

    results = map_in_order(squared, items(), 2)
    for _ in range(300):
        next(results)
    results.close()
    assert len(read) < 1500


def test_large_items_are_sent_one_by_one():
    big = [bytes(2 << 20)] * 270
    assert sum(len(item) for item in map_in_order(bytes, big, 2)) == 270 * (2 << 20)


def test_a_killed_worker_is_one_line_and_no_hang():
    with pytest.raises(RunError, match="a worker process was killed") as caught:
        list(map_in_order(killing_its_process, range(5000), 2))
    assert "\n" not in str(caught.value)
    assert "--workers 1" in str(caught.value)


def test_an_error_in_a_worker_arrives_as_it_is():
    with pytest.raises(ZeroDivisionError, match="row 400"):
        list(map_in_order(failing, range(5000), 2))
