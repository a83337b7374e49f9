"""Where ranks leave notes for one another, beside the process group: torch's key-value store at MASTER_ADDR."""

import contextlib
import os
import platform
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from misotune.errors import RunError

CURE = (
    "see that MASTER_ADDR and MASTER_PORT are the same on every host, that rank 0's host answers there, that no "
    "firewall lies between, and name the right network interface: NCCL_SOCKET_IFNAME (on CPUs GLOO_SOCKET_IFNAME)"
)
# An answer from the store takes milliseconds; this is for one note, not for a rank to come.
_ANSWER_S = 30.0
# Other threads connect again, and rank 0 hosts the store as long as it lives.
_server: TCPStore | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the processes this is, as launchers tell it.

    Attributes:
        rank: Number of this process.
        local_rank: Its number on its host.
        world_size: Number of processes.
        host: Name of the machine.
    """

    rank: int
    local_rank: int
    world_size: int
    host: str


def this_place() -> Place:
    """Returns this process's place; one process alone is rank 0 of 1."""
    return Place(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        host=platform.node(),
    )


def open_store(prefix: str, *, limit_s: float) -> PrefixStore:
    """Returns a connection of its own to the store; rank 0 starts the store where the launcher has none.

    A call on the connection may block for as long as the store's host is stopped or unreachable: call it in a thread
    that nothing waits for, or by `within`.

    Args:
        prefix: Notes of other prefixes are not seen.
        limit_s: Seconds for the store to answer.

    Raises:
        RunError: No store can be reached or started.
    """
    place = this_place()
    address, port = _address()
    if place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        _start_server(address, port)
    deadline = time.monotonic() + limit_s
    _knock(address, port, place, deadline, limit_s)
    try:
        client = within(
            max(deadline - time.monotonic(), 1.0),
            lambda: TCPStore(address, port, is_master=False, timeout=timedelta(seconds=_ANSWER_S)),
        )
    except (TimeoutError, RuntimeError) as error:
        raise RunError(
            f"rank {place.rank} on {place.host}: {address}:{port} takes connections, but is no store of torch "
            f"that answers: {CURE}"
        ) from error
    # Elastic launchers may start the ranks again beside the same store, and Slurm a requeued job at the same port.
    attempt = "-".join(
        os.environ.get(name, "0")
        for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )
    return PrefixStore(f"misotune/{attempt}/{prefix}", client)


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Returns what `function` returns, called in a thread that is left behind where it takes too long.

    What waits inside torch's network code cannot be interrupted, not even by Ctrl-C.

    Raises:
        TimeoutError: It took longer than `seconds`.
    """
    outcome: list[tuple[bool, Any]] = []
    done = threading.Event()

    def call() -> None:
        try:
            outcome.append((True, function()))
        except BaseException as error:  # noqa: BLE001 - handed on to the caller
            outcome.append((False, error))
        done.set()

    threading.Thread(target=call, daemon=True, name="misotune-within").start()
    if not done.wait(seconds):
        raise TimeoutError(f"no answer within {seconds:g} s")
    ((is_good, value),) = outcome
    if not is_good:
        raise value
    return value


def store_address() -> str:
    """Returns where the store is, for a message."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _address() -> tuple[str, int]:
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port or not port.isdigit():
        raise RunError(
            f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')}, but MASTER_ADDR is {address!r} and MASTER_PORT {port!r}: "
            "start the ranks with misotune train, torchrun or srun, or set both to rank 0's host and a free port"
        )
    return address, int(port)


def _start_server(address: str, port: int) -> None:
    global _server
    if _server is not None and _server.port == port:
        return
    _refuse_taken_port(port)
    try:
        _server = TCPStore(
            address,
            port,
            is_master=True,
            timeout=timedelta(seconds=_ANSWER_S),
            wait_for_workers=False,
            # `init_process_group` of other libraries may share it.
            multi_tenant=True,
        )
    except RuntimeError as error:
        raise RunError(f"rank 0 cannot open MASTER_PORT {port}: {str(error).splitlines()[0]}; set another") from error


def _refuse_taken_port(port: int) -> None:
    """Asks before torch does, whose answer has a stack of C++ around it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise RunError(
                f"rank 0 cannot open MASTER_PORT {port}: {error.strerror}; another job may have it: set another"
            ) from error


def _knock(address: str, port: int, place: Place, deadline: float, limit_s: float) -> None:
    """Waits until somebody listens there; torch's own waiting prints C++ stacks."""
    while True:
        try:
            with contextlib.closing(socket.create_connection((address, port), timeout=5)):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise RunError(
                    f"rank {place.rank} on {place.host} cannot reach rank 0 at {address}:{port} within {limit_s:g} s "
                    f"({reason}): {CURE}"
                ) from error
        time.sleep(0.2)
