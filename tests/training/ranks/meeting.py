"""Processes that only meet: forked from one that has imported torch, each with a launcher's environment.

Tests call `hold`; `python -m tests.training.ranks.meeting FOLDER` is what it starts.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
_LIMIT_S = 60.0


@dataclass(frozen=True)
class Rank:
    """A process.

    Attributes:
        rank: Its number.
        changes: Fields of its report that are not as the others'.
        prepares_s: Seconds between rank 0's waiting for it and its meeting; 0 for one that does not look for rank 0.
        is_stuck: Whether it stops for ever before it joins the process group.
        environment: Further variables.
    """

    rank: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    prepares_s: float = 0.0
    is_stuck: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Meeting:
    """Ranks that meet; `world_size` may be more than come."""

    world_size: int
    ranks: Sequence[Rank]
    has_agent: bool = False


def hold(meetings: Mapping[str, Meeting], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns what came of each meeting, for each of its ranks: `error` with `kind`, or `found` and `messages`."""
    (folder / "meetings.json").write_text(json.dumps({name: asdict(meeting) for name, meeting in meetings.items()}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.ranks.meeting", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads((folder / "outcomes.json").read_text())


def main(folder: Path) -> None:
    """Holds the meetings of `folder/meetings.json` at once, and writes `folder/outcomes.json`."""
    importlib.import_module("misotune.training.ranks.preflight")  # once, before the forks
    meetings = json.loads((folder / "meetings.json").read_text())
    started = {name: _fork(meeting, folder / name) for name, meeting in meetings.items()}
    # After every fork: a store's threads may hold a lock that a fork would inherit locked.
    agents = [_open_port(meeting, folder / name) for name, meeting in meetings.items()]
    deadline = time.monotonic() + _LIMIT_S
    for processes in started.values():
        for process in processes:
            while os.waitpid(process, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline or _is_stopped(process, processes):
                    os.kill(process, signal.SIGKILL)
                time.sleep(0.02)
    outcomes = {
        name: [json.loads(Path(f"{folder / name}-{i}.json").read_text() or "{}") for i in range(len(meeting["ranks"]))]
        for name, meeting in meetings.items()
    }
    (folder / "outcomes.json").write_text(json.dumps(outcomes))
    del agents


def _is_stopped(process: int, processes: list[int]) -> bool:
    """True for a stuck process that is the only one left of its meeting."""
    states = [_state(other) for other in processes if other != process]
    return _state(process) == "T" and all(state in ("Z", "") for state in states)


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _open_port(meeting: dict[str, Any], stem: Path) -> Any:
    """Tells the ranks of a meeting where the store is; returns the agent's, which must live on."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if meeting["has_agent"] else None
    Path(f"{stem}.new").write_text(str(agent.port if agent else _free_port()))
    Path(f"{stem}.new").rename(f"{stem}.port")
    return agent


def _read_port(stem: Path) -> str:
    while not (file := Path(f"{stem}.port")).exists():
        time.sleep(0.02)
    return file.read_text()


def _fork(meeting: dict[str, Any], stem: Path) -> list[int]:
    processes: list[int] = []
    for i, rank in enumerate(meeting["ranks"]):
        Path(f"{stem}-{i}.json").touch()
        if (process := os.fork()) == 0:
            os.environ.update(
                RANK=str(rank["rank"]),
                LOCAL_RANK=str(rank["rank"]),
                WORLD_SIZE=str(meeting["world_size"]),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=_read_port(stem),
                **({"TORCHELASTIC_USE_AGENT_STORE": "True"} if meeting["has_agent"] else {}),
                **rank["environment"],
            )
            try:
                outcome = _meet(rank)
            except BaseException:  # noqa: BLE001 - the fork must not go on
                outcome = {"kind": "crash", "error": traceback.format_exc()}
            Path(f"{stem}-{i}.json").write_text(json.dumps(outcome))
            os._exit(0)
        processes.append(process)
    return processes


def _meet(rank: dict[str, Any]) -> dict[str, Any]:
    from misotune.errors import MisotuneError
    from misotune.training.ranks import preflight
    from misotune.training.ranks.report import make_report

    messages: list[str] = []
    start = time.monotonic()
    try:
        if rank["is_stuck"]:
            preflight._make_group = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)
        preflight.appear()
        if rank["prepares_s"]:
            assert preflight._meeting is not None
            # On a busy machine rank 0 may come long after this one: its limit counts from its own coming.
            preflight._meeting.store.wait(["report/0"])
            time.sleep(rank["prepares_s"])
        report = make_report('{"name": "a", "train": {"learning_rate": 1e-05}}', "0123456789abcdef", Path.cwd())
        report = replace(report, **rank["changes"])
        found = preflight.meet(report, timeout_minutes=1, on_message=messages.append)
    except MisotuneError as error:
        return {"kind": type(error).__name__, "error": str(error), "seconds": time.monotonic() - start}
    import torch
    import torch.distributed as dist

    total = torch.tensor([1.0])
    dist.all_reduce(total)  # the group is the one that training uses
    dist.barrier()
    return {"found": found, "messages": messages, "sum": total.item(), "seconds": time.monotonic() - start}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
