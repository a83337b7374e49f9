"""Commands of misotune, run in the study's folder: each in a process of its own, with a log of its own."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path


class CommandError(RuntimeError):
    """A command failed; the message has the end of its log."""


class Runner:
    """Runs misotune's commands, several at a time where they are independent.

    Args:
        work: The folder that they run in.
        jobs: How many at a time.
        environment: Variables besides this process's own.
        dry_run: Only print them.
    """

    def __init__(self, work: Path, jobs: int, environment: dict[str, str], *, dry_run: bool) -> None:
        self.work, self.jobs, self.dry_run = work, jobs, dry_run
        self._environment = {**os.environ, **environment}
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            self._environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = threading.Event()

    def misotune(self, log: str, *arguments: object) -> tuple[str, float]:
        """Runs a command, and returns what it printed on stdout, and the seconds that it took.

        Raises:
            CommandError: It failed.
        """
        words = [str(argument) for argument in arguments]
        if self._stopped.is_set():
            raise CommandError("stopped")
        print("$ misotune", shlex.join(words), flush=True)
        if self.dry_run:
            return "", 0.0
        path = self.work / "logs" / f"{log}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with path.open("a", encoding="utf-8") as errors:
            errors.write(f"$ misotune {shlex.join(words)}\n")
            errors.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "misotune", *words],
                cwd=self.work,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # signals come from `stop` alone, once
            )
            self._running.add(process)
            try:
                printed, _ = process.communicate()
            except BaseException:  # the signal came to this very thread
                process.terminate()
                process.wait()
                raise
            finally:
                self._running.discard(process)
        if process.returncode:
            end = "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise CommandError(f"misotune {words[0]} ended with {process.returncode}; the end of {path}:\n{end}")
        return printed, time.perf_counter() - start

    def run_all(self, pieces: Iterable[tuple[str, Callable[[], None]]]) -> None:
        """Runs named pieces that do not depend on one another; after a failure those that run are still awaited.

        Raises:
            CommandError: At least one of them failed.
        """
        pieces = list(pieces)
        failures: list[str] = []
        start = time.perf_counter()
        with ThreadPoolExecutor(1 if self.dry_run else self.jobs) as pool:
            names = {pool.submit(run): name for name, run in pieces}
            try:
                for number, done in enumerate(as_completed(names), start=1):
                    error = done.exception()
                    if error is not None:
                        failures.append(f"{names[done]}: {error}")
                    if not self.dry_run:
                        state = f"failed: {error}" if error else "done"
                        print(
                            f"[{number}/{len(pieces)}] {names[done]} {state}, {time.perf_counter() - start:.0f} s",
                            flush=True,
                        )
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise
        if failures:
            raise CommandError("\n\n".join(failures))

    def stop(self) -> None:
        """Asks what runs to end (training saves a checkpoint), and starts nothing more."""
        self._stopped.set()
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)
