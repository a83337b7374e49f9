"""`misotune train` as a parent of two ranks, for real: its signals, its death, theirs, and what the user reads."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import psutil
import pytest
from typer.testing import CliRunner

from misotune.cli.main import app
from misotune.errors import RunError, UsageError
from misotune.recipe.resolved import DEFAULT, ResolvedRecipe, dump, leaves
from misotune.runs import RunFolder

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
TIMEOUT_S = 200


@pytest.fixture
def command(make_recipe, tmp_path):
    """Returns the command that trains a recipe on two ranks, and its run folder."""

    def make(*options, **sections):
        recipe = make_recipe("run", **sections)
        path = tmp_path / "recipe.yaml"
        path.write_text(dump(ResolvedRecipe(recipe, {".".join(p): DEFAULT for p, _ in leaves(recipe)})))
        command = [sys.executable, "-m", "misotune", "train", str(path), *(options or ("--nproc", "2"))]
        return command, RunFolder(tmp_path / "runs" / "run")

    return make


def run(command, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


@contextmanager
def training(command, **variables):
    """Starts a long run and yields its parent and its ranks, once steps are trained; nothing outlives the block."""
    parent = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **variables}
    )
    ranks = []
    try:
        said = ""
        while "step 2/" not in said:
            line = parent.stderr.readline()
            assert line, said
            said += line
        ranks = [child for child in psutil.Process(parent.pid).children() if "misotune" in child.cmdline()]
        assert len(ranks) == 2
        yield parent, ranks
    finally:
        for process in [parent, *ranks]:
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                process.kill()
        parent.communicate()


LONG = {"max_steps": 20_000, "batch_size": 4}


def test_a_signal_to_the_parent_stops_the_ranks_in_order_and_is_told_once(command, tmp_path):
    arguments, folder = command(train=LONG)
    # Without a cache, the parent makes the tokens for its ranks in a folder of their own.
    with training(arguments, MISOTUNE_CACHE="off", TMPDIR=str(tmp_path)) as (parent, ranks):
        tokens = folder.read_plan()["cache"]
        assert tokens["used"]
        assert tokens["folder"].startswith(f"{tmp_path}/misotune-tokens-")
        parent.send_signal(signal.SIGTERM)
        said = parent.stderr.read()
        assert parent.wait(TIMEOUT_S) == 128 + signal.SIGTERM
        assert not psutil.wait_procs(ranks, timeout=5)[1]
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: stopped by SIGTERM after step")
    assert said.count("stopped by SIGTERM") == 1
    assert "Traceback" not in said
    (checkpoint,) = folder.checkpoints.glob("step-*")
    assert str(checkpoint) in last
    assert not list(tmp_path.glob("misotune-*"))  # neither tokens nor logs are left


def test_a_killed_rank_ends_the_others_and_is_named(command):
    arguments, folder = command(train=LONG)
    with training(arguments) as (parent, ranks):
        begun = time.monotonic()
        by_rank = {process.environ()["RANK"]: process for process in ranks}
        by_rank["1"].kill()
        said = parent.stderr.read()
        assert parent.wait(TIMEOUT_S) == 1
        assert time.monotonic() - begun < 60
        assert not psutil.wait_procs(ranks, timeout=5)[1]
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"error: rank 1 (process {by_rank['1'].pid}) was killed by SIGKILL")
    # What the other rank met is a consequence; without a checkpoint --resume starts at step 0.
    assert "Traceback" not in said
    assert f"the other ranks were ended; go on: misotune train {folder.recipe} --resume" in last


def test_a_killed_parent_takes_its_ranks_with_it(command):
    arguments, folder = command(train=LONG)
    with training(arguments) as (parent, ranks):
        parent.kill()
        assert not psutil.wait_procs(ranks, timeout=TIMEOUT_S)[1]
    assert list(folder.checkpoints.glob("step-*"))  # they had the time to save


def test_an_error_that_every_rank_meets_is_read_once(command, tiny_model_dir, tmp_path):
    # The weights are what only ranks load.
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"not weights")
    arguments, _ = command(model={"name": str(model)})
    done = run(arguments)
    assert done.returncode in (1, 2), done.stderr
    assert done.stderr.count("plan of run") == 1
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


def test_what_can_be_refused_is_refused_before_a_rank_starts(command, dataset, monkeypatch):
    monkeypatch.setattr("misotune.training.ranks.starting.run_ranks", lambda *_, **__: pytest.fail("ranks start"))
    arguments, folder = command()
    folder.path.mkdir(parents=True)
    folder.recipe.write_text("name: run\n")
    refused = CliRunner().invoke(app, arguments[3:])
    assert isinstance(refused.exception, UsageError)
    assert str(refused.exception).startswith(f"{folder.path} is there already")

    dataset.write_text('{"id": "row-0"}\n')
    refused = CliRunner().invoke(app, [*arguments[3:], "--overwrite"])
    assert isinstance(refused.exception, RunError)
    assert "rows.jsonl:1" in str(refused.exception)


def test_deepspeed_in_one_process_needs_no_launcher(command):
    arguments, folder = command("--nproc", "1", deepspeed={"stage": 2}, train={"max_steps": 2})
    done = run(arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "starting:" not in done.stderr
    assert folder.is_finished()


def test_torchrun_by_hand_works(command):
    arguments, folder = command("--offline", train={"max_steps": 2})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = run([*torchrun, *arguments[1:]])
    assert done.returncode == 0, done.stderr[-4000:]
    assert folder.is_finished()
    assert done.stderr.count("plan of run") == 1


def test_offline_two_ranks_train_where_there_is_no_network(command):
    inside = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not shutil.which("unshare") or run([*inside, "true"]).returncode:
        pytest.skip("needs unshare and ip, and a kernel that lets a user make a network namespace")
    arguments, folder = command("--nproc", "2", "--offline", train={"max_steps": 2})
    done = run([*inside, *arguments])
    assert done.returncode == 0, done.stderr[-3000:]
    assert folder.is_finished()


def test_offline_a_model_that_is_not_here_is_refused_before_a_rank_starts(command, tmp_path):
    arguments, _ = command()
    done = run(
        [*arguments, "--offline", "model.name=nobody/nothing"],
        HF_HOME=str(tmp_path / "hub"),
    )
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: model nobody/nothing: no such folder here")
    assert "HF_HUB_OFFLINE is set" in last
