"""Asks `misotune.doctor.probe` in other processes, and goes on where one of them dies."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A package on a network disk may need so long; here all take a few seconds.
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process found out about one name.

    Attributes:
        facts: Empty where there is an error.
        error: None: all is well.
        is_missing: The error is a module that is not there.
        culprit: The outermost module that is not there, or in whose code the error was raised; None: not known.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    is_missing: bool = False
    culprit: str | None = None


def ask_all(groups: Iterable[Sequence[str]], timeout_s: float = TIMEOUT_S) -> dict[str, Answer]:
    """Returns the answers to all names; each group has a process of its own, and all run at once."""
    groups = [group for group in groups if group]
    with ThreadPoolExecutor(len(groups)) as threads:
        found = threads.map(lambda group: ask(group, timeout_s), groups)
        return {name: answer for answers in found for name, answer in answers.items()}


def ask(names: Sequence[str], timeout_s: float = TIMEOUT_S) -> dict[str, Answer]:
    """Returns the answers to names, looked at in order; another process goes on where one dies.

    Args:
        names: As the probe knows them.
        timeout_s: Seconds that one process has.
    """
    answers: dict[str, Answer] = {}
    while left := [name for name in names if name not in answers]:
        lines, end = _run(left, timeout_s)
        for line in lines:
            if "name" in line:
                name = line.pop("name")
                answers[name] = Answer(**line)
        started = [line["started"] for line in lines if "started" in line]
        died_at = started[-1] if started else left[0]
        if died_at not in answers:
            answers[died_at] = end
    return answers


def _run(names: Sequence[str], timeout_s: float) -> tuple[list[dict[str, Any]], Answer]:
    """Returns the lines that a process wrote, and what is to be said of the name at which it ended."""
    # It finds what this process finds, in the same order, and nothing more out of the working folder.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", "misotune.doctor.probe", *names]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        return _lines(error.stdout), Answer(error=f"no answer within {timeout_s:g} s")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        end = Answer(error=f"the process that imported it died of {name}", culprit=_culprit(done.stderr))
    else:
        end = Answer(error=f"the process that imported it ended with exit code {done.returncode}")
    return _lines(done.stdout), end


def _lines(output: bytes | None) -> list[dict[str, Any]]:
    whole = (output or b"").rpartition(b"\n")[0]  # a killed process may leave half a line
    return [json.loads(line) for line in whole.splitlines()]


def _culprit(trace: bytes) -> str | None:
    """Returns the outermost module of the code in which a process died, out of faulthandler's trace."""
    for file in re.findall(r'File "([^"<]+)"', trace.decode(errors="replace")):
        for folder in sorted(filter(None, sys.path), key=len, reverse=True):
            if Path(file).is_relative_to(folder):
                return Path(file).relative_to(folder).parts[0].removesuffix(".py")
    return None
