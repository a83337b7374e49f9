"""Which processes train together: what launchers and Slurm say, and why ranks ended."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from misotune.cli.main import app
from misotune.cli.train_launch import LaunchOptions, machines_to_start
from misotune.errors import RunError, UsageError
from misotune.training.ranks import child, slurm
from misotune.training.ranks.hosts import Host, read_hostfile, remote_command
from misotune.training.ranks.launch import Machines, host_and_port, join, machines, train_alone
from misotune.training.ranks.nodes import NodeLink
from misotune.training.ranks.outcome import Ended, judge
from misotune.training.ranks.sbatch import SlurmJob, sbatch_script
from misotune.training.ranks.starting import open_store

NO_OPTIONS = {"nproc": None, "nnodes": None, "node_rank": None, "master": None}
TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "n0", "MASTER_PORT": "29500"}
# Of `srun --nodes=2 --ntasks-per-node=4`, task 6.
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
    "SLURM_JOB_NODELIST": "gpu[08-09]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}
# A batch script, before srun: one process, though NTASKS is 8 and PROCID is set.
BATCH = {"SLURM_JOB_ID": "1234567", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
# `srun --pty bash` on one machine.
SHELL = {
    **SRUN,
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}
ONE_PER_NODE = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
ONE_PER_NODE |= {"SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "num_gpus", "joins"),
    [
        pytest.param({}, 8, False, id="alone"),
        pytest.param(TORCHRUN, 2, True, id="torchrun"),
        pytest.param({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, 1, True, id="by-hand-one-rank"),
        pytest.param(SRUN, 4, True, id="srun"),
        pytest.param(BATCH, 8, False, id="batch-script"),
        pytest.param(SHELL, 8, False, id="interactive-shell"),
        pytest.param(ONE_PER_NODE, 8, False, id="srun-one-task-a-node-with-gpus"),
        pytest.param(ONE_PER_NODE, 1, True, id="srun-one-task-a-node-with-one-gpu"),
    ],
)
def test_a_process_joins_only_where_another_program_started_several(environment, num_gpus, joins):
    assert join(dict(environment), num_gpus) is joins


def test_a_task_of_srun_becomes_a_rank():
    environment = dict(SRUN)
    join(environment, 4)
    rank = {key: value for key, value in environment.items() if not key.startswith("SLURM")}
    assert rank == {
        "RANK": "6",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu08",
        "MASTER_PORT": str(12_000 + 1234567 % 20_000),
    }


def test_a_task_that_sees_only_its_own_gpu_takes_that_one():
    environment = dict(SRUN)
    join(environment, 1)
    assert environment["LOCAL_RANK"] == "0"


def test_an_address_of_the_users_own_goes_before_slurms():
    environment = {**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000"}
    join(environment, 4)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "5000")


@pytest.mark.parametrize("missing", ["WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_a_launchers_variables_are_refused(missing):
    environment = {key: value for key, value in TORCHRUN.items() if key != missing}
    with pytest.raises(UsageError, match=rf"RANK is set, but not {missing}"):
        join(environment, 1)


def test_half_of_sruns_variables_are_refused():
    with pytest.raises(UsageError, match="8 tasks, but SLURM_NODEID is not set"):
        join({key: value for key, value in SRUN.items() if key != "SLURM_NODEID"}, 4)
    with pytest.raises(UsageError, match=r"'4\(y2\)' is no list of tasks"):
        join({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4(y2)"}, 4)


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("gpu1", ["gpu1"]),
        ("a,b", ["a", "b"]),
        ("gpu[03-05,9],login1", ["gpu03", "gpu04", "gpu05", "gpu9", "login1"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("r[1-2]n[0-1]-ib", ["r1n0-ib", "r1n1-ib", "r2n0-ib", "r2n1-ib"]),
        ("a-b.c[1].d", ["a-b.c1.d"]),
    ],
)
def test_node_lists_are_expanded(nodelist, hosts):
    assert slurm.expand_hosts(nodelist) == hosts


@pytest.mark.parametrize("nodelist", ["", "gpu[1", "gpu1]", "gpu[a-b]"])
def test_what_is_no_node_list_is_refused(nodelist):
    with pytest.raises(ValueError, match="is no node list"):
        slurm.expand_hosts(nodelist)


@pytest.mark.parametrize(
    ("options", "environment", "num_gpus", "expected"),
    [
        ({}, {}, 0, Machines(1)),
        ({}, {}, 8, Machines(8)),
        ({"nproc": 2}, {}, 8, Machines(2)),
        ({"nnodes": 2, "node_rank": 1, "master": "a:5"}, {}, 4, Machines(4, 2, 1, "a", 5)),
        ({"nnodes": 2, "master": "a"}, {}, 0, Machines(1, 2, 0, "a", 29500)),
        ({"nnodes": 2, "nproc": 8}, {}, 0, Machines(8, 2, 0, "127.0.0.1", 29500)),
        ({}, ONE_PER_NODE, 8, Machines(8, 2, 1, "gpu08", 12_000 + 1234567 % 20_000)),
    ],
    ids=["cpu", "gpus", "nproc", "two-nodes", "default-port", "for-a-plan", "srun-one-task-a-node"],
)
def test_machines_and_ranks_follow_from_options_and_gpus(options, environment, num_gpus, expected):
    assert machines(environment, num_gpus, **{**NO_OPTIONS, **options}) == expected


def test_wrong_options_are_refused():
    with pytest.raises(UsageError, match=r"--node-rank 2 is not in 0\.\.1: --nnodes is 2"):
        machines({}, 0, **{**NO_OPTIONS, "nnodes": 2, "node_rank": 2})
    for text in ("host:port", ":29500", "host:99999", "host:"):
        with pytest.raises(UsageError, match="give HOST:PORT"):
            host_and_port(text)
    assert host_and_port("[fe80::1]:29500") == ("fe80::1", 29500)


def test_options_about_processes_are_refused_inside_a_launcher(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--nproc and --nnodes: this process is one of several already"):
        machines_to_start(LaunchOptions(nproc=2, nnodes=2), uses_deepspeed=False)


def test_one_process_with_deepspeed_needs_no_launcher():
    environment = {"PATH": "/bin"}
    train_alone(environment)
    assert join(environment, 0)
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("0", "1")


HOSTFILE = "# two machines\n\ngpu1 slots=4\ngpu2   slots=4  # the slow one\n"


def test_a_hostfile_is_deepspeeds(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(HOSTFILE)
    assert read_hostfile(path) == [Host("gpu1", 4), Host("gpu2", 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu1\n", r"hosts:1: 'gpu1' is not of the form NAME slots=NUMBER"),
        ("gpu1 slots=4\ngpu1 slots=4\n", "hosts:2: gpu1 is named twice"),
        ("-oProxyCommand=x slots=4\n", "hosts:1: .* is not of the form"),
        ("# none\n", "names no machine"),
        ("a slots=8\nb slots=4\n", "same number of slots; write slots=4"),
    ],
    ids=["no-slots", "twice", "an-option-for-ssh", "empty", "unequal"],
)
def test_a_wrong_hostfile_is_refused(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_hostfile(path)
    with pytest.raises(UsageError, match="No such file"):
        read_hostfile(tmp_path / "none")


def test_a_machine_gets_settings_but_no_secrets(tmp_path):
    environment = {"NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_x", "WANDB_API_KEY": "x", "HOME": "/root", "HF_HOME": "/a b"}
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    command = remote_command(Machines(4, 2, 0, "gpu1", 29500), 1, ["train", "a b.yaml"], environment, tmp_path)
    assert command == (
        f"cd {tmp_path} && exec env HF_HOME='/a b' NCCL_DEBUG=INFO TOKENIZERS_PARALLELISM=false {sys.executable} -m "
        "misotune train 'a b.yaml' --nnodes 2 --node-rank 1 --nproc 4 --master gpu1:29500 --signals-from-stdin"
    )


def test_without_ssh_a_hostfile_is_refused(tmp_path, tiny_recipe, monkeypatch):
    (tmp_path / "hosts").write_text(HOSTFILE)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["train", str(tiny_recipe), "--hostfile", str(tmp_path / "hosts")])
    assert isinstance(result.exception, UsageError)
    assert "ssh, which is not installed" in str(result.exception)


@pytest.fixture
def tiny_recipe(make_recipe, tmp_path):
    from misotune.recipe.resolved import DEFAULT, ResolvedRecipe, dump, leaves

    recipe = make_recipe("tiny")
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(ResolvedRecipe(recipe, {".".join(path): DEFAULT for path, _ in leaves(recipe)})))
    return path


def hand_over(folder, rank, monkeypatch, message, code=1):
    with monkeypatch.context() as patch:
        patch.setenv(child.FOLDER, str(folder))
        patch.setenv("RANK", str(rank))
        assert child.hand_over(message, code)


def outcome(folder, *ended, handed_on=(), elsewhere="", num_killed=0):
    return judge(ended, folder, handed_on=handed_on, elsewhere=elsewhere, num_killed=num_killed, go_on="go on: X")


def test_ranks_that_all_ended_well_have_no_message(tmp_path):
    assert outcome(tmp_path, Ended(0, 10, 0), Ended(1, 11, 0)).exit_code == 0


def test_an_error_that_all_ranks_met_is_told_once_and_without_a_number(tmp_path, monkeypatch):
    for rank in (0, 1):
        hand_over(tmp_path, rank, monkeypatch, "the learning rate is odd", 2)
    result = outcome(tmp_path, Ended(1, 11, 2), Ended(0, 10, 2))
    assert (result.exit_code, result.message) == (2, "the learning rate is odd")


def test_an_error_of_one_rank_names_it(tmp_path, monkeypatch):
    hand_over(tmp_path, 1, monkeypatch, "its disk is full")
    assert outcome(tmp_path, Ended(1, 11, 1), Ended(0, 10, -9, by_us=True)).message == "rank 1: its disk is full"


def test_a_killed_rank_goes_before_the_errors_that_it_caused(tmp_path):
    result = outcome(tmp_path, Ended(0, 10, 1), Ended(1, 11, -9), Ended(2, 12, 1))
    assert result.exit_code == 1
    assert result.message.startswith("rank 1 (process 11) was killed by SIGKILL (not for want of memory")
    assert result.message.endswith("the other ranks were ended; go on: X")


def test_a_kill_of_the_kernels_asks_for_less_memory(tmp_path):
    message = outcome(tmp_path, Ended(0, 10, 1), Ended(1, 11, -9), num_killed=1).message
    assert "out of memory? The kernel killed 1 process(es)" in message
    assert "train.tokens_per_micro_batch" in message
    assert "memory" not in outcome(tmp_path, Ended(1, 11, -9), num_killed=None).message


def test_an_error_that_nobody_foresaw_is_shown_with_its_trace(tmp_path, monkeypatch):
    monkeypatch.setenv(child.FOLDER, str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    assert child.hand_over_trace(ZeroDivisionError("in the model"))
    result = outcome(tmp_path, Ended(1, 11, 1), Ended(0, 10, 1))
    assert "ZeroDivisionError: in the model" in result.details
    assert result.message == "rank 1 (process 11) ended with exit code 1"


def test_a_log_stands_in_where_a_rank_said_nothing(tmp_path):
    (tmp_path / "rank-1.txt").write_text("free(): invalid pointer\n")
    result = outcome(tmp_path, Ended(1, 11, 134), Ended(0, 10, 1))
    assert (result.exit_code, result.details) == (134, "free(): invalid pointer")


@pytest.mark.parametrize(
    ("ended", "handed_on", "code", "message"),
    [
        ((Ended(0, 10, 143), Ended(1, 11, 143)), [15], 143, "stopped by SIGTERM; go on: X"),
        (
            (Ended(0, 10, -15), Ended(1, 11, -15)),
            [15],
            143,
            "stopped by SIGTERM while the ranks were starting: nothing",
        ),
        ((Ended(1, 11, 130), Ended(0, 10, 130)), [2, 2], 130, "stopped at once by a second signal (SIGINT came first)"),
        ((Ended(1, 11, -9), Ended(0, 10, -9)), [15, 15, 15], 143, "stopped at once by a second signal"),
    ],
    ids=["stopped", "starting", "second", "third"],
)
def test_ranks_that_a_signal_stopped_keep_its_exit_code(tmp_path, ended, handed_on, code, message):
    result = outcome(tmp_path, *ended, handed_on=handed_on)
    assert result.exit_code == code
    assert result.message.startswith(message)


def test_a_failure_on_another_machine_is_named(tmp_path):
    result = outcome(tmp_path, Ended(0, 10, 1), elsewhere="rank 9 (process 3) was killed by SIGKILL on gpu2")
    assert result.message.startswith("rank 9 (process 3) was killed by SIGKILL on gpu2; the ranks here were ended")


@pytest.fixture
def linked():
    """The links of two machines' parents, over the loopback."""
    store = open_store(Machines(1))
    first = NodeLink("127.0.0.1", store.port, 2, 0, store)
    return first, NodeLink("127.0.0.1", store.port, 2, 1)


def test_no_machine_starts_before_all_are_ready(linked):
    first, second = linked
    with pytest.raises(RunError, match=r"machine 1 of 0\.\.1 did not come .* --nnodes 2 --node-rank 1 --master"):
        first.wait_for_all(0.0, pytest.fail)
    second.wait_for_all(10.0, pytest.fail)  # the first has said that it is ready
    first.wait_for_all(10.0, pytest.fail)


def test_a_machine_that_does_not_reach_the_first_says_so():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RunError, match=rf"machine 0 of 0\.\.1 did not come to 127\.0\.0\.1:{port} .* firewall"):
        NodeLink("127.0.0.1", port, 2, 1).wait_for_all(0.0, pytest.fail)


def test_the_first_failure_is_known_to_every_machine(linked):
    first, second = linked
    with pytest.raises(RunError):
        first.wait_for_all(0.0, pytest.fail)
    second.wait_for_all(10.0, pytest.fail)
    assert first.failure_elsewhere() == ""
    assert second.tell_failed("rank 1 was killed") == ""
    assert first.tell_failed("rank 0 lost rank 1").startswith("rank 1 was killed on ")
    second.leave()
    first.leave()


def test_a_taken_port_is_refused_with_another_to_choose():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RunError, match=rf"port {port} cannot be opened .* --master 127\.0\.0\.1:PORT"):
            open_store(Machines(1, 2, 0, "127.0.0.1", port))


JOB = SlurmJob("a-run", "r.yaml", (), Path("runs/a-run"), 2, 4, 6, "1-00", "/py", Path("/w"), is_offline=False)


def test_a_batch_script_is_bash():
    script = sbatch_script(JOB)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-"], input=script, text=True, check=True)
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4", "#SBATCH --gpus-per-node=4"} <= set(lines)
    assert {"#SBATCH --signal=TERM@600", "#SBATCH --requeue", "#SBATCH --time=1-00"} <= set(lines)


def test_a_time_limit_that_slurm_does_not_know_is_refused():
    for text in ("60", "10:00", "1:00:00", "2-0", "2-0:30:00"):
        assert f"--time={text}\n" in sbatch_script(JOB.__class__(**{**fields(JOB), "time_limit": text}))
    with pytest.raises(UsageError, match="--time 1d"):
        sbatch_script(JOB.__class__(**{**fields(JOB), "time_limit": "1d"}))


def fields(job):
    return {name: getattr(job, name) for name in job.__slots__}


# As Slurm does it: a process for each task, with the variables of a step; the first non-zero code ends the job.
FAKE_SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
[ -n "$STOP_AT_STEP" ] && until grep -q "\\"step\\": $STOP_AT_STEP," "$METRICS" 2> /dev/null; do sleep 0.1; done \\
    && kill -TERM $first $second
wait $first; code=$?
wait $second || code=$?
exit $code
"""


@pytest.fixture
def batch(tiny_recipe, tmp_path, monkeypatch):
    """Runs the script that `misotune launch slurm` writes, with an srun and scontrol of our own."""
    monkeypatch.chdir(tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text(FAKE_SRUN)
    (tools / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/scontrol.txt\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    arguments = ["launch", "slurm", str(tiny_recipe), "train.max_steps=20", "train.log_every_steps=1"]
    result = CliRunner().invoke(app, [*arguments, "--gpus-per-node", "2", "--offline"], catch_exceptions=False)
    assert result.exit_code == 0
    port = slurm.port_of_job(os.getpid())

    def run(**variables):
        return subprocess.run(
            ["bash", "tiny.sbatch"],
            env={
                **os.environ,
                **{"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2"},
                **{"SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "localhost", "OMP_NUM_THREADS": "1"},
                **{"DS_ACCELERATOR": "cpu", "MASTER_PORT": str(port), "METRICS": "runs/tiny/metrics.jsonl"},
                **variables,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    return run


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.distributed
def test_a_batch_job_is_stopped_requeued_and_goes_on(batch, tmp_path):
    stopped = batch(STOP_AT_STEP="1")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr[-4000:]
    assert (tmp_path / "scontrol.txt").read_text() == f"requeue {os.getpid()}\n"
    assert "plan of tiny" in stopped.stderr

    done = batch(SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr[-4000:]
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))
    assert "resuming from" in done.stderr
