"""Several machines from one terminal: a hostfile, and `misotune train` on each of its machines by ssh.

DeepSpeed's own launcher reads the same hostfile, and works too (`deepspeed --hostfile FILE --no_local_rank --module
misotune train RECIPE`). It needs pdsh; at a signal it ends ranks within 30 seconds, be they saving or not, and exits
with 1. So each machine has a parent of ours here, which hears of signals by its standard input: ssh hands none on, but
it closes the input when it dies.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from misotune.errors import UsageError
from misotune.training.ranks.launch import Machines
from misotune.training.ranks.starting import SAME_SIGNAL_S, collected_signals

# What ranks on other machines need of this one's environment; never a key or token: it would stand in `ps` there.
_HANDED_ON = re.compile(
    r"(NCCL|GLOO|TORCH|CUDA_DEVICE_ORDER|HF|HUGGINGFACE|TRANSFORMERS|DS_|DEEPSPEED|MISOTUNE|OMP|MKL|PYTHON|UCX|WANDB|"
    r"TRITON|TOKENIZERS|XDG_CACHE_HOME|LD_LIBRARY_PATH|VIRTUAL_ENV)"
)
_SECRET = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSWORD")
_WORDS: dict[int, bytes] = {
    signal.SIGTERM: b"TERM\n",
    signal.SIGINT: b"INT\n",
    signal.SIGUSR1: b"USR1\n",
    signal.SIGHUP: b"HUP\n",
}
FAILED = b"FAILED\n"
_SSH_FAILED = 255
# Most machines end by themselves when another fails; those that still make tokens or wait are told.
_TELL_AFTER_S = 5.0
# After one machine has failed, the others have this long: a machine's parent gives its ranks 25 seconds.
_GRACE_S = 45.0


@dataclass(frozen=True, slots=True)
class Host:
    """A line of a hostfile: a machine, and how many ranks run on it."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """Returns the machines of a hostfile: a line `NAME slots=NUMBER` each, `#` begins a comment.

    Raises:
        UsageError: There is no such file, or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--hostfile {path}: {error.strerror}") from error
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)", words)
        if not match or match[1].startswith("-"):
            raise UsageError(f"{path}:{number}: {words!r} is not of the form NAME slots=NUMBER, as in gpu1 slots=8")
        if match[1] in {host.name for host in hosts}:
            raise UsageError(f"{path}:{number}: {match[1]} is named twice")
        hosts.append(Host(match[1], int(match[2])))
    if not hosts:
        raise UsageError(f"{path} names no machine; a line is NAME slots=NUMBER, as in gpu1 slots=8")
    if len({host.slots for host in hosts}) > 1:
        fewest = min(host.slots for host in hosts)
        raise UsageError(f"{path}: every machine needs the same number of slots; write slots={fewest} in each line")
    return hosts


def run_on_hosts(
    hosts: Sequence[Host], machines: Machines, arguments: Sequence[str], announce: Callable[[str], None]
) -> int:
    """Runs `misotune ARGUMENTS` on each machine by ssh; returns the exit code of the first that failed, or 0.

    Each machine says itself, on this terminal, why it failed.

    Args:
        hosts: The machines.
        machines: How they find one another.
        arguments: What follows `misotune`.
        announce: Called with each command.

    Raises:
        UsageError: There is no ssh.
    """
    if shutil.which("ssh") is None:
        raise UsageError("--hostfile starts each machine by ssh, which is not installed; or use --nnodes on each")
    commands = [
        ssh_command(host, remote_command(machines, node, arguments, os.environ, Path.cwd()))
        for node, host in enumerate(hosts)
    ]
    for command in commands:
        announce(shlex.join(command))
    with collected_signals() as signals:
        processes = [subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) for command in commands]
        return _wait(dict(zip([host.name for host in hosts], processes, strict=True)), signals, announce)


def _wait(
    processes: Mapping[str, subprocess.Popen[bytes]], signals: deque[int], announce: Callable[[str], None]
) -> int:
    """Returns the exit code of the machine that failed first, or 0, once all have ended."""
    living, code, last_signal = dict(processes), 0, float("-inf")
    tell_at = kill_at = float("inf")
    while living:
        now = time.monotonic()
        while signals:
            number = signals.popleft()
            if now - last_signal > SAME_SIGNAL_S:
                _tell(living.values(), _WORDS[number])
            last_signal = now
        for name, process in list(living.items()):
            if process.poll() is None:
                continue
            del living[name]
            if process.returncode and not code:
                code = process.returncode if process.returncode > 0 else 1
                tell_at, kill_at = now + _TELL_AFTER_S, now + _GRACE_S
                if code == _SSH_FAILED:
                    announce(f"ssh to {name} failed, or the connection was lost")
        if now > tell_at:
            _tell(living.values(), FAILED)
            tell_at = float("inf")
        if now > kill_at:
            for process in living.values():
                process.kill()
        time.sleep(0.1)
    return code


def ssh_command(host: Host, command: str) -> list[str]:
    """Returns what runs a command on a machine; ssh never asks for a password."""
    return ["ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=30", host.name, command]


def remote_command(
    machines: Machines, node: int, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
) -> str:
    """Returns the line that a machine's shell runs: the same folder, interpreter and settings as here."""
    variables = [
        f"{name}={shlex.quote(value)}"
        for name, value in sorted(environment.items())
        if _HANDED_ON.match(name) and not _SECRET.search(name)
    ]
    own = ["--nnodes", str(machines.num_nodes), "--node-rank", str(node), "--nproc", str(machines.num_local)]
    own += ["--master", f"{machines.host}:{machines.port}", "--signals-from-stdin"]
    command = shlex.join([sys.executable, "-m", "misotune", *arguments, *own])
    return " ".join([f"cd {shlex.quote(str(folder))} && exec env", *variables, command])


def follow_stdin() -> threading.Event:
    """Makes words on standard input into signals of this process; its end is SIGTERM: whoever started this is gone.

    Returns:
        Set once another machine has failed, which is told here as SIGTERM too.
    """
    has_failed = threading.Event()

    def read() -> None:
        # Without a buffer: Python cannot end while a thread waits in one.
        for line in open(0, "rb", buffering=0, closefd=False):  # noqa: SIM115
            if line == FAILED:
                has_failed.set()
            number = next((number for number, word in _WORDS.items() if word == line), signal.SIGTERM)
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    return has_failed


def _tell(processes: Iterable[subprocess.Popen[bytes]], word: bytes) -> None:
    for process in processes:
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.write(word)
                process.stdin.flush()
