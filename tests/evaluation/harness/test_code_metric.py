"""The metric of code tasks, against its definition and against humaneval's own solutions."""

import gzip
import itertools
import json
import time

import pytest

from misotune.evaluation.harness.code_metric import CodeEval, offline_code_eval, pass_at_k, passes
from misotune.evaluation.harness.loading import load_harness_task
from misotune.evaluation.harness.options import HarnessOptions


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("print('x' * 100000)\nimport sys; sys.stderr.write('y')", True),
        ("raise SystemExit(0)", False),
        ("import os; os._exit(0)", False),
        ("def broken(:", False),
        ("input()", False),
        ("if __name__ == '__main__':\n    raise ValueError", True),
        ("x = '\\ud800'", True),
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()", True),
    ],
    ids=["right", "wrong", "chatty", "exits", "leaves", "no-python", "reads", "no-main", "surrogate", "thread"],
)
def test_a_program_passes_that_reaches_its_end(program, expected):
    assert passes(program) is expected


def test_a_program_that_does_not_end_is_ended():
    start_s = time.monotonic()
    assert not passes("while True: pass", timeout_s=0.5)
    assert not passes("import subprocess, time; subprocess.Popen(['sleep', '100']); time.sleep(100)", timeout_s=0.5)
    assert time.monotonic() - start_s < 25


def test_the_chance_of_passing_is_that_of_all_draws():
    for total, correct, k in itertools.product(range(1, 6), range(6), range(1, 6)):
        if correct <= total and k <= total:
            draws = list(itertools.combinations([i < correct for i in range(total)], k))
            assert pass_at_k(total, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_candidates_are_told_one_by_one():
    tests = ["assert add(2, 3) == 5", "assert add(1, 1) == 2"]
    candidates = [["def add(a, b): return a + b", "def add(a, b): return a * b"], ["def add(a, b): return 0"] * 2]
    figures, verdicts = CodeEval().compute(references=tests, predictions=candidates, k=[1, 2, 10])
    assert figures == {"pass@1": 0.25, "pass@2": 0.5}
    assert [[verdict["passed"] for _, verdict in verdicts[i]] for i in range(2)] == [[True, False], [False, False]]


def test_other_metrics_are_loaded_as_ever(monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate, "load", lambda path: path)
    with offline_code_eval():
        assert isinstance(evaluate.load("code_eval"), CodeEval)
        assert evaluate.load("other") == "other"
    assert evaluate.load("code_eval") == "code_eval"


def test_humanevals_own_solutions_pass_and_empty_ones_do_not(shared_data, tmp_path):
    with gzip.open(shared_data / "code" / "HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[::3]))
    loaded = load_harness_task("humaneval", HarnessOptions(data=path, run_model_code=True))
    task = loaded.tasks["humaneval"]
    for row in rows[::3]:
        for text, expected in ((row["canonical_solution"], 1.0), ("    pass\n", 0.0)):
            assert task.process_results(row, [[row["prompt"] + text]]) == {"pass@1": expected}
