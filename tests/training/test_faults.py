"""Faults caused for real, from outside: signals and kills that hit the command while it trains."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from misotune.recipe.resolved import DEFAULT, ResolvedRecipe, dump, leaves
from misotune.runs import RunFolder
from misotune.training.run import train
from misotune.training.saving.checkpoints import list_checkpoints

PATIENCE_S = 120
# More steps than are done between a line and the answer to it.
MANY_STEPS = {"max_steps": 400, "batch_size": 2, "warmup_ratio": 0.5}


class Command:
    """`misotune train` in a process group of its own; its lines are read as they come.

    Attributes:
        lines: What it has said on both streams.
    """

    def __init__(self, recipe, *arguments, environment=None):
        origins = {".".join(path): DEFAULT for path, _ in leaves(recipe)}
        path = Path(recipe.output.runs_dir).parent / f"{recipe.name}.yaml"
        path.write_text(dump(ResolvedRecipe(recipe, origins)), encoding="utf-8")
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "misotune", "train", str(path), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Of a shell that started the tests in its background SIGINT would be ignored, and so inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.family():
            process.kill()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def said(self):
        return "\n".join(self.lines)

    def wait_for(self, pattern):
        """Returns the first line in which the pattern is found."""
        return wait_until(lambda: next((line for line in self.lines if re.search(pattern, line)), None), self)

    def family(self):
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def ends(self):
        """Returns the exit code, once nothing more is said."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join()
        return code


def wait_until(found, command):
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if result := found():
            return result
        assert command.process.poll() is None, command.said
        time.sleep(0.01)
    raise AssertionError(f"waited in vain: {command.said}")


def run_of(recipe):
    return RunFolder(Path(recipe.output.runs_dir, recipe.name))


def losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def the_error(command):
    """The one line that tells the user what happened."""
    (line,) = (line for line in command.lines if "error: " in line)
    assert "Traceback" not in command.said
    return line


def saved_step(run):
    (folder,) = list_checkpoints(run.checkpoints)
    return int(folder.name.removeprefix("step-"))


def two_ranks(recipe, **environment):
    """Starts the ranks by hand, as a scheduler does: each one's exit code is its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Command(recipe, environment={**shared, "RANK": rank, "LOCAL_RANK": rank, **environment}) for rank in ("0", "1")
    ]


def test_signalled_command_saves_and_ends_with_its_code(make_recipe):
    recipe = make_recipe(train=MANY_STEPS)
    with Command(recipe) as command:
        command.wait_for("^step 3/400 ")
        os.kill(command.process.pid, signal.SIGTERM)
        assert command.ends() == 143
    run = run_of(recipe)
    step = saved_step(run)
    assert 3 <= step < 400
    assert the_error(command) == (
        f"error: stopped by SIGTERM after step {step} of 400; saved in {run.checkpoints / f'step-{step}'}; "
        f"go on: misotune train {run.recipe} --resume"
    )
    assert len(losses(run)) == step


def test_signal_while_the_model_is_loaded_says_that_nothing_was_trained(make_recipe):
    recipe = make_recipe(train=MANY_STEPS)
    with Command(recipe) as command:
        command.wait_for("plan of run")
        os.kill(command.process.pid, signal.SIGTERM)
        assert command.ends() == 143
    assert the_error(command).startswith("error: stopped by SIGTERM before the first step: nothing was trained; ")


@pytest.mark.distributed
@pytest.mark.slow
def test_signal_to_one_of_two_ranks_stops_both_at_one_step_and_the_run_goes_on_as_if_nothing_was(make_recipe):
    settings = {"max_steps": 60, "batch_size": 4, "warmup_ratio": 0.5}
    recipe = make_recipe("two", train=settings)
    first, second = two_ranks(recipe)
    with first, second:
        first.wait_for("^step 2/60 ")
        os.kill(second.process.pid, signal.SIGTERM)
        assert (first.ends(), second.ends()) == (143, 143)
    run = run_of(recipe)
    step = saved_step(run)
    assert 2 <= step < 60
    for rank in (first, second):
        assert f"error: stopped by SIGTERM after step {step} of 60; saved in " in the_error(rank)
    with Command(recipe, "--resume") as command:  # one rank goes on with what two have saved
        assert command.ends() == 0, command.said
    whole = train(make_recipe("whole", train=settings), "name: test\n")
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.distributed
@pytest.mark.slow
def test_second_signal_ends_a_rank_at_once_even_while_it_waits_for_one_that_stands_still(make_recipe):
    recipe = make_recipe(train=MANY_STEPS | {"save_every_steps": 2})
    first, second = two_ranks(recipe)
    with first, second:
        first.wait_for("^step 4/400 ")
        os.kill(second.process.pid, signal.SIGSTOP)
        time.sleep(1.0)  # the first now waits in a collective, where no handler of Python runs
        os.kill(first.process.pid, signal.SIGTERM)
        first.wait_for("SIGTERM: the step is finished and saved, then the run stops; a second signal stops at once")
        os.kill(first.process.pid, signal.SIGTERM)  # a launcher's repetition of the same signal
        time.sleep(2.5)
        assert first.process.poll() is None
        os.kill(first.process.pid, signal.SIGTERM)
        started = time.monotonic()
        assert first.ends() == 143
        assert time.monotonic() - started < 10
        assert "stopped at once by a second signal (SIGTERM); go on: misotune train" in first.said


NON_FINITE = {
    "loss-ddp": ("nan_loss_at_z", None, r"loss nan in micro-batch \d+; its rows: row-9;"),
    "gradient-zero-2": ("nan_gradient_at_z", {"stage": 2}, r"gradient norm inf; its rows: .*row-9"),
}


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(("model", "deepspeed", "message"), NON_FINITE.values(), ids=NON_FINITE)
def test_number_that_is_not_finite_on_one_rank_stops_both_at_its_step(make_recipe, request, model, deepspeed, message):
    """Only row-9 writes about jazz: the other rank's losses are finite."""
    settings = {"pack": False, "max_steps": 12, "batch_size": 2, "save_every_steps": 1, "keep_checkpoints": 12}
    folder = request.getfixturevalue(model)
    recipe = make_recipe(model={"name": str(folder)}, train=settings, deepspeed=deepspeed)
    first, second = two_ranks(recipe)
    with first, second:
        assert (first.ends(), second.ends()) == (1, 1), first.said
    assert re.search(rf"error: step \d+: {message}.*kept in", the_error(first))
    assert "error" not in second.said  # of the ranks of a host one tells it
    run = run_of(recipe)
    (folder,) = run.non_finite.iterdir()
    rows = [json.loads(path.read_text())["rows"] for path in sorted(folder.glob("*.json"))]
    assert "row-9" in {row["id"] for (row,) in rows}
    assert all(path.with_suffix(".json").is_file() for path in folder.glob("*.safetensors"))
    step = int(folder.name.removeprefix("step-"))
    assert [path.name for path in list_checkpoints(run.checkpoints)] == [f"step-{n}" for n in range(1, step)]


def test_interrupt_while_tokens_are_made_ends_the_workers_without_a_word_of_them(make_recipe, tmp_path, dataset):
    """Both while they start, which takes seconds, and to the whole group, as a terminal does it."""
    rows = dataset.read_text().splitlines()
    many = tmp_path / "many.jsonl"
    with many.open("w") as file:
        for i in range(10_000):
            file.write(rows[i % len(rows)].replace('"id": "row-', f'"id": "row-{i}-') + "\n")
    recipe = make_recipe(data={"path": str(many)}, train={"max_steps": 1})
    with Command(recipe, environment={"MISOTUNE_CACHE": str(tmp_path / "cache")}) as command:
        workers = wait_until(lambda: is_encoding(command), command)
        os.killpg(command.process.pid, signal.SIGINT)
        assert command.ends() == 130, command.said
        assert the_error(command) == (
            "error: stopped by SIGINT before the first step: nothing was trained; start again with the same command"
        )
        assert not any(worker.is_running() for worker in workers)


def is_encoding(command):
    return [child for child in command.family() if "spawn_main" in " ".join(child.cmdline())]
