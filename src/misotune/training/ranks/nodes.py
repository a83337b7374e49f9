"""How the parents on several machines wait for one another, and tell one another that ranks failed.

Machine 0's parent keeps a store, in which the ranks meet too. Through it no machine's ranks start before every machine
has its tokens (which may take long, while ranks wait a minute for each other), and a rank that dies on one machine
ends the others everywhere, also where a collective would wait for it without end.
"""

import platform
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from misotune.errors import RunError

_POLL_S = 1.0
_SAY_AFTER_S = 10.0


class NodeLink:
    """A parent's link to those on the other machines.

    Args:
        host: Machine 0.
        port: Port of its store.
        num_nodes: Number of machines.
        node: Number of this machine.
        store: The store, on machine 0, whose parent holds it.
    """

    def __init__(self, host: str, port: int, num_nodes: int, node: int, store: Any = None) -> None:
        self.host = host
        self.port = port
        self.num_nodes = num_nodes
        self.node = node
        self._store = store
        self._looked_at = 0.0
        self._failure = ""

    def wait_for_all(self, timeout_s: float, on_message: Callable[[str], None]) -> None:
        """Returns once every machine's parent is ready to start its ranks.

        Raises:
            RunError: Some were not ready in time, or one ended; they are named.
        """
        begun = time.monotonic()
        has_said = False
        while True:
            missing = self._missing()
            if not missing:
                return
            if failure := self.failure_elsewhere():
                raise RunError(failure)
            names = ", ".join(str(node) for node in missing)
            waited = time.monotonic() - begun
            if waited > timeout_s:
                raise RunError(
                    f"machine {names} of 0..{self.num_nodes - 1} did not come to {self.host}:{self.port} within "
                    f"{timeout_s / 60:g} minutes; start it with --nnodes {self.num_nodes} --node-rank {missing[0]} "
                    f"--master {self.host}:{self.port}, and look whether a firewall closes that port"
                )
            if waited > _SAY_AFTER_S and not has_said:
                on_message(f"waiting for machine {names} at {self.host}:{self.port}")
                has_said = True
            time.sleep(min(_POLL_S, 0.2 + waited / 10))

    def failure_elsewhere(self) -> str:
        """Returns why ranks failed on another machine, or empty; looked at once a second."""
        if not self._failure and time.monotonic() - self._looked_at > _POLL_S:
            self._looked_at = time.monotonic()
            if self._is_told("failed"):
                self._failure = self._tell_first("failed", "")
            elif self._store is not None and not self._is_reachable():
                self._failure = f"machine 0 is gone: {self.host}:{self.port} no longer answers"
        return self._failure

    def tell_failed(self, what: str) -> str:
        """Says that a rank failed here; returns what failed first elsewhere, or empty if this was the first."""
        what = f"{what} on {platform.node()}"
        first = self._tell_first("failed", what)
        self._failure = "" if first == what else first
        return self._failure

    def leave(self, timeout_s: float = 30.0) -> None:
        """Says that all ended here; machine 0, which holds the store, waits for the others to say so too."""
        self._tell(f"left/{self.node}")
        end = time.monotonic() + timeout_s
        while self.node == 0 and time.monotonic() < end:
            others = [node for node in range(1, self.num_nodes) if self._is_told(f"ready/{node}")]
            if all(self._is_told(f"left/{node}") for node in others):
                return
            time.sleep(0.2)

    def _missing(self) -> list[int]:
        """Returns the machines that are not ready, as far as this one can tell."""
        if self._store is None and not self._connect():
            return [0]
        self._tell(f"ready/{self.node}")
        return [node for node in range(self.num_nodes) if not self._is_told(f"ready/{node}")]

    def _connect(self) -> bool:
        if not self._is_reachable():
            return False
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        with suppress(RuntimeError):
            self._store = TCPStore(
                self.host, self.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10)
            )
        return self._store is not None

    def _is_reachable(self) -> bool:
        """Looked at first: the store's client fills the terminal with frames of C++ when its server is gone."""
        if self.node == 0:
            return True
        try:
            with socket.create_connection((self.host, self.port), timeout=5):
                return True
        except OSError:
            return False

    def _tell(self, what: str) -> None:
        if self._store is not None and self._is_reachable():
            with suppress(RuntimeError):
                self._store.set(f"misotune/{what}", "1")

    def _tell_first(self, what: str, text: str) -> str:
        """Returns what was told first, which may be this."""
        if self._store is not None and self._is_reachable():
            with suppress(RuntimeError):
                return self._store.compare_set(f"misotune/{what}", "", text).decode()
        return text

    def _is_told(self, what: str) -> bool:
        if self._store is not None and self._is_reachable():
            with suppress(RuntimeError):
                return self._store.check([f"misotune/{what}"])
        return False
