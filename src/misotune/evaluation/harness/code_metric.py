"""The metric `code_eval` of the package `evaluate`: the share of programs that pass their tests.

lm-eval's humaneval and mbpp load it from the hub, as a script. Its definition is that of Chen et al. 2021,
"Evaluating Large Language Models Trained on Code", section 2.1; written anew here, it needs no network, and a program
runs in an interpreter of its own instead of a fork of this process, which may hold a model and its threads.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

NAME = "code_eval"
# As there.
_TIMEOUT_S = 3.0
_NUM_WORKERS = 4
# The interpreter's own start is no part of the program's time, and may be slow on a busy machine.
_START_S = 30.0
_PASSED = "misotune: the program reached its end"
# The program comes on standard input, as a command line has a longest length; it sees an empty input itself.
_RUN = f"""\
import io, os, signal, sys
program, sys.stdin = sys.stdin.read(), io.StringIO()
told, sys.stdout, sys.stderr = sys.stdout, io.StringIO(), io.StringIO()
if hasattr(signal, "setitimer"):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
exec(program, {{}})
told.write({_PASSED!r})
told.flush()
os._exit(0)  # whatever threads the program leaves behind
"""


class CodeEval:
    """What `evaluate.load("code_eval")` returns, as far as lm-eval asks it."""

    def compute(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = _NUM_WORKERS,
        timeout: float = _TIMEOUT_S,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Returns pass@k for each k that there are enough candidates for, and each candidate's verdict.

        Args:
            predictions: Candidates of each problem.
            references: Its tests, put behind a candidate.
            k: So many candidates may be tried.
            num_workers: Programs at once.
            timeout: The longest that a program may take, in seconds.
        """
        jobs = [
            (problem, candidate, f"{text}\n{tests}")
            for problem, (candidates, tests) in enumerate(zip(predictions, references, strict=True))
            for candidate, text in enumerate(candidates)
        ]
        with ThreadPoolExecutor(num_workers) as pool:
            verdicts = list(pool.map(lambda job: passes(job[2], timeout), jobs))
        found: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for (problem, candidate, _), passed in zip(jobs, verdicts, strict=True):
            found[problem].append((candidate, {"task_id": problem, "passed": passed, "completion_id": candidate}))
        counts = [(len(tried), sum(verdict["passed"] for _, verdict in tried)) for tried in found.values()]
        figures = {
            f"pass@{num}": sum(pass_at_k(total, correct, num) for total, correct in counts) / len(counts)
            for num in k
            if all(total >= num for total, _ in counts)
        }
        return figures, found


def pass_at_k(num_candidates: int, num_correct: int, k: int) -> float:
    """Returns the chance that one of k candidates, drawn without replacement, passes (equation 1 there).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(2, 0, 1)
    (0.25, 0.5, 0.0)
    """
    return 1.0 - math.comb(num_candidates - num_correct, k) / math.comb(num_candidates, k)


def passes(program: str, timeout_s: float = _TIMEOUT_S) -> bool:
    """Returns whether a program, its tests included, runs to its end without an error and in time.

    It runs in an empty folder and without this process's environment, but is not locked up otherwise: who runs a
    model's code has to trust the model, or the machine has to be one that nothing can happen to.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as told:
        with tempfile.TemporaryFile() as given:
            given.write(program.encode("utf-8", "replace"))
            given.seek(0)
            # Files instead of pipes, which a process that the program leaves behind would hold open.
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _RUN, str(timeout_s)],
                stdin=given,
                stdout=told,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s + _START_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        process.wait()
        told.seek(0)
        return told.read().decode("utf-8", "replace").endswith(_PASSED)


@contextlib.contextmanager
def offline_code_eval() -> Iterator[None]:
    """Gives `CodeEval` to whoever loads the metric `code_eval`; other metrics are loaded as ever."""
    import evaluate

    load: Callable[..., Any] = evaluate.load

    def load_here(path: str, *args: Any, **kwargs: Any) -> Any:
        return CodeEval() if path == NAME else load(path, *args, **kwargs)

    with mock.patch.object(evaluate, "load", load_here):
        yield
