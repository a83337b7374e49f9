"""Before the first step: the ranks find one another, agree on what they will train, and sum a tensor together."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

from misotune.errors import RunError, ToldError
from misotune.training.ranks.report import RankReport, disagreement, name_ranks, number_ranks
from misotune.training.ranks.store import CURE, Place, open_store, this_place, within

# Within which ranks must come, and later must have joined the process group.
LIMIT_S = 60.0
# Collectives must outlive the watchdog, which says why they hang, and a checkpoint that is long in writing.
COLLECTIVE_TIMEOUT = timedelta(days=7)
# A verdict is read by all before rank 0, and the store with it, goes.
_FAREWELL_S = 5.0
_POLL_S = 0.1
_meetings = itertools.count()
_meeting: "_Meeting | None" = None


@dataclass(frozen=True, slots=True)
class _Meeting:
    """This process's connection to the others until they have met."""

    place: Place
    store: PrefixStore
    number: int
    appeared_at: float


def appear() -> None:
    """Says to the other ranks that this one is there, before it prepares its data, which may take long.

    With one process, or in a process group that exists already, nothing is to be said.

    Raises:
        RunError: Rank 0's host cannot be reached, or another process says that it is this rank.
    """
    global _meeting
    place = this_place()
    if place.world_size == 1 or dist.is_initialized():
        return
    number = next(_meetings)
    store = open_store(f"meeting-{number}", limit_s=limit_s())
    me = f"{place.host}, pid {os.getpid()}"
    with _calls(place):
        first = store.compare_set(f"here/{place.rank}", "", me).decode()
    if first != me:
        raise RunError(
            f"two processes say that they are rank {place.rank}: {first}, and {me}; RANK is set wrongly, or another "
            f"job uses MASTER_PORT {os.environ.get('MASTER_PORT')}"
        )
    _meeting = _Meeting(place, store, number, time.monotonic())


def meet(
    report: RankReport, *, timeout_minutes: float, on_message: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Joins the ranks to one process group, once they agree; returns what was found, for `environment.json`.

    Every rank must have appeared within a minute of this one. One that has, and is still preparing its data, is waited
    for. All ranks raise when one does; `ToldError` where another rank on the same host has said it.

    Args:
        report: This rank's.
        timeout_minutes: To wait for a rank that has appeared.
        on_message: Told, on rank 0, who is waited for and who has met.

    Raises:
        RunError: A rank is missing, the ranks differ, or they cannot talk.
    """
    global _meeting
    if report.world_size == 1:
        if report.problem:
            raise RunError(report.problem)
        return _found([report], None)
    if dist.is_initialized():  # by whoever started this process, or by an earlier run in it
        reports: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(reports, report)
        problem = disagreement(reports)
        if problem:
            raise _error(problem, this_place())
        return _found(reports, None)
    if _meeting is None:
        appear()
    assert _meeting is not None
    meeting, _meeting = _meeting, None
    with _calls(meeting.place):
        meeting.store.set(f"report/{report.rank}", json.dumps(asdict(report)))
        say = on_message if on_message and report.rank == 0 else lambda _: None
        reports = _gather(meeting, timeout_minutes, say) if report.rank == 0 else _hear(meeting, timeout_minutes)
        speed = _join(meeting, reports)
    say(_greeting(reports, speed))
    return _found(reports, speed)


def limit_s() -> float:
    """Returns the seconds within which ranks must come: `MISOTUNE_MEET_SECONDS`, or a minute."""
    return float(os.environ.get("MISOTUNE_MEET_SECONDS", LIMIT_S))


def lengthen_timeouts() -> None:
    """Gives every process group the long timeout: libraries make further ones with 10 or 30 minutes."""
    groups = getattr(getattr(dist.distributed_c10d, "_world", None), "pg_map", {})
    set_timeout = getattr(dist.distributed_c10d, "_set_pg_timeout", None)
    if set_timeout is not None:  # not a public function of torch
        for group in list(groups):
            set_timeout(COLLECTIVE_TIMEOUT, group)


def _gather(meeting: _Meeting, timeout_minutes: float, say: Callable[[str], None]) -> list[RankReport]:
    """Returns all reports, on rank 0, and tells the other ranks what came of it."""
    place, store = meeting.place, meeting.store
    try:
        _wait_for_all(meeting, timeout_minutes, say)
        reports = _read_reports(store, range(place.world_size))
        problem = disagreement(reports)
        if problem is None:
            store.set("verdict", "")
            return reports
        error = _error(problem, place)
    except RunError as missing:
        error = missing
    present = [rank for rank in range(place.world_size) if store.check([f"report/{rank}"])]
    store.set("verdict", str(error))
    deadline = time.monotonic() + _FAREWELL_S
    while time.monotonic() < deadline and not store.check([f"heard/{rank}" for rank in present if rank]):
        time.sleep(_POLL_S)
    raise error


def _wait_for_all(meeting: _Meeting, timeout_minutes: float, say: Callable[[str], None]) -> None:
    """Waits, on rank 0, until all reports are there."""
    place, store = meeting.place, meeting.store
    start = time.monotonic()
    missing, has_said = list(range(place.world_size)), False
    while missing := [rank for rank in missing if not store.check([f"report/{rank}"])]:
        is_late = time.monotonic() - meeting.appeared_at > limit_s()
        if is_late:
            _refuse_absent(meeting)
        if is_late and time.monotonic() - start > 60 * timeout_minutes:
            raise RunError(
                f"{number_ranks(missing)} appeared, but did not get ready within {timeout_minutes:g} minutes "
                "(train.timeout_minutes); see what they print, or make the tokens before: misotune train RECIPE --plan"
            )
        if is_late and not has_said:
            say(f"waiting for {number_ranks(missing)}, still preparing data")
            has_said = True
        time.sleep(_POLL_S)


def _hear(meeting: _Meeting, timeout_minutes: float) -> list[RankReport]:
    """Returns all reports, on another rank than 0, once rank 0 has found that they agree."""
    place, store = meeting.place, meeting.store
    start = time.monotonic()
    while not store.check(["verdict"]):
        # Rank 0 has the first word, since all hear it.
        if time.monotonic() - meeting.appeared_at > limit_s() + _FAREWELL_S:
            _refuse_absent(meeting)
        # Rank 0 may be the one that is still preparing, and it may wait for others then.
        if time.monotonic() - start > 2 * (limit_s() + 60 * timeout_minutes):
            raise _error("rank 0 appeared, but did not get ready; see what it prints", place)
        time.sleep(_POLL_S)
    problem = store.get("verdict").decode()
    store.set(f"heard/{place.rank}", "1")
    if problem:
        raise _error(problem, place)
    return _read_reports(store, range(place.world_size))


def _refuse_absent(meeting: _Meeting) -> None:
    place, store = meeting.place, meeting.store
    hosts = {
        rank: store.get(f"here/{rank}").decode().split(",")[0]
        for rank in range(place.world_size)
        if store.check([f"here/{rank}"])
    }
    absent = [rank for rank in range(place.world_size) if rank not in hosts]
    if absent:
        names = list(dict.fromkeys(hosts.values()))
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more hosts" if len(names) > 8 else "")
        problem = (
            f"{number_ranks(absent)} of {place.world_size} did not come within {limit_s():g} s; "
            f"{number_ranks(list(hosts))} came, on {shown}. Start all of them (MISOTUNE_MEET_SECONDS waits longer for "
            f"slow ones), and {CURE}"
        )
        raise _error(problem, place)


def _join(meeting: _Meeting, reports: Sequence[RankReport]) -> dict[str, Any]:
    """Makes the process group and sums a tensor over it; returns the size, time and speed of that."""
    place, limit = meeting.place, limit_s()
    # A connection of its own: the other one has to say who is missing when this one hangs.
    group_store = open_store(f"group-{meeting.number}", limit_s=limit)
    try:
        speed = within(limit, lambda: _make_group(group_store, place))
    except (TimeoutError, RuntimeError) as error:
        reason = "" if isinstance(error, TimeoutError) else f" ({str(error).splitlines()[0]})"
        problem = (
            f"the ranks found one another, but could not sum a tensor within {limit:g} s{reason}; "
            f"{_who_is_stuck(meeting, reports)}. Likely a wrong network interface or a firewall: {CURE}"
        )
        raise _error(problem, place) from error
    meeting.store.set(f"joined/{place.rank}", "yes")
    return speed


def _who_is_stuck(meeting: _Meeting, reports: Sequence[RankReport]) -> str:
    """Returns which ranks say nothing, or else which have not joined."""
    store = meeting.store
    store.set(f"joined/{meeting.place.rank}", "no")
    deadline = time.monotonic() + _FAREWELL_S
    silent = list(reports)
    while silent and time.monotonic() < deadline:
        silent = [report for report in silent if not store.check([f"joined/{report.rank}"])]
        time.sleep(_POLL_S)
    if silent:
        return f"{name_ranks(silent)} silent: stopped or dead"
    stuck = [report for report in reports if store.get(f"joined/{report.rank}") == b"no"]
    return f"{name_ranks(stuck)} stuck, each waiting for another"


def _make_group(store: PrefixStore, place: Place) -> dict[str, Any]:
    uses_cuda = torch.cuda.is_available()
    device = torch.device("cuda", place.local_rank) if uses_cuda else torch.device("cpu")
    if uses_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        # With gloo beside NCCL, flags and reports need no GPU.
        "cpu:gloo,cuda:nccl" if uses_cuda else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    dist.barrier()  # on the CPU, also beside NCCL
    numbers = 2**24 if uses_cuda else 2**20
    expected = place.world_size * (place.world_size + 1) / 2
    seconds: list[float] = []
    for _ in range(4):
        tensor = torch.full((numbers,), float(place.rank + 1), device=device)
        if uses_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        if uses_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if not bool((tensor == expected).all()):
            raise RuntimeError(f"the sum over the ranks is wrong: {float(tensor.min())} in place of {expected}")
    best = min(seconds[1:])  # the first makes the connections
    moved = 2 * (place.world_size - 1) / place.world_size * numbers * 4
    return {
        "bytes": numbers * 4,
        "ms": round(best * 1e3, 3),
        "first_ms": round(seconds[0] * 1e3, 3),
        # As nccl-tests count: what each rank's link carries.
        "bus_gb_per_s": round(moved / best / 1e9, 3),
    }


def _read_reports(store: PrefixStore, ranks: Sequence[int]) -> list[RankReport]:
    return [RankReport(**json.loads(value)) for value in store.multi_get([f"report/{rank}" for rank in ranks])]


@contextmanager
def _calls(place: Place) -> Iterator[None]:
    """Says in our words that the store went away, which is to say rank 0 or its launcher."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError
        raise RunError(
            f"rank {place.rank} on {place.host} lost the connection to rank 0 while the ranks met; see what rank 0 "
            f"prints ({str(error).splitlines()[0]})"
        ) from error


def _error(problem: str, place: Place) -> RunError:
    """All ranks know of it: one on each host says it."""
    return RunError(problem) if place.local_rank == 0 else ToldError(problem)


def _greeting(reports: Sequence[RankReport], speed: dict[str, Any]) -> str:
    gpus = list(dict.fromkeys(report.gpu for report in reports if report.gpu)) or ["CPU"]
    return (
        f"{name_ranks(reports)} have met: {' and '.join(gpus)}; {speed['bytes'] / 2**20:g} MiB summed in "
        f"{speed['ms']:.1f} ms, {speed['bus_gb_per_s']:.2f} GB/s"
    )


def _found(reports: Sequence[RankReport], speed: dict[str, Any] | None) -> dict[str, Any]:
    ranks = [asdict(report) for report in reports]
    for rank in ranks:
        for key in ("recipe", "data", "versions", "world_size", "problem"):
            del rank[key]  # the same on all
    return {"versions": reports[0].versions, "data": reports[0].data, "ranks": ranks, "all_reduce": speed}
