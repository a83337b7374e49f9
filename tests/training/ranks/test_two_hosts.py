"""Two hosts, for real: two network namespaces joined by a cable, which reach each other by addresses alone."""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from misotune.recipe.resolved import DEFAULT, ResolvedRecipe, dump, leaves
from misotune.runs import RunFolder
from misotune.training.run import train

pytestmark = [pytest.mark.hosts, pytest.mark.distributed, pytest.mark.slow]

ADDRESSES = ("10.213.7.1", "10.213.7.2")
CABLE = "miso0"  # its end has the same name on both hosts
# A host is its address here: ssh enters its namespace, as sshd on that host would run the command in a shell.
FAKE_SSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
host=$1; shift
case $host in {first}) name={names[0]};; {second}) name={names[1]};; *) exit 255;; esac
exec ip netns exec $name bash -c "$*"
"""
# As pdsh does it: the command on every host, %n the host's number.
FAKE_PDSH = """#!/bin/bash
while [[ $1 == -* ]]; do case $1 in -S) shift;; -w) hosts=$2; shift 2;; *) shift 2;; esac; done
n=0; pids=()
for host in ${{hosts//,/ }}; do command="$*"; ssh $host "${{command//%n/$n}}" & pids+=($!); n=$((n + 1)); done
code=0; for pid in ${{pids[@]}}; do wait $pid || code=$?; done; exit $code
"""


@pytest.fixture(scope="module")
def hosts():
    """The names of two namespaces with a network between them; both are gone afterwards."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and `ip netns`")
    names = tuple(f"miso-{uuid.uuid4().hex[:6]}-{number}" for number in (0, 1))

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces: {error.stderr.decode().strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", CABLE)
            ip("-n", name, "link", "set", CABLE, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def tools(hosts, tmp_path):
    """A folder for PATH with ssh and pdsh."""
    folder = tmp_path / "tools"
    folder.mkdir()
    texts = {"ssh": FAKE_SSH, "pdsh": FAKE_PDSH}
    for tool, text in texts.items():
        path = folder / tool
        path.write_text(text.format(names=hosts, first=ADDRESSES[0], second=ADDRESSES[1]))
        path.chmod(0o755)
    return folder


@pytest.fixture
def hostfile(tmp_path):
    """Both hosts, a rank on each."""
    path = tmp_path / "hosts"
    path.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    return path


@pytest.fixture
def recipe(make_recipe, tmp_path):
    """Returns the path of a recipe of three steps, and its run folder."""

    def make(name):
        recipe = make_recipe(name, train={"max_steps": 3})
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump(ResolvedRecipe(recipe, {".".join(p): DEFAULT for p, _ in leaves(recipe)})))
        return path, RunFolder(tmp_path / "runs" / name)

    return make


def losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def environment(**variables):
    # Else gloo takes the address of the machine's name, which is that of both namespaces.
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": CABLE, **variables}


@pytest.fixture
def expected(make_recipe):
    """The losses of one process."""
    return losses(train(make_recipe("one", train={"max_steps": 3}), "name: one\n"))


def finished(run, expected):
    assert losses(run) == pytest.approx(expected, rel=1e-5)
    assert run.is_finished()


def test_the_command_on_each_of_two_hosts_trains_as_one_process_does(hosts, recipe, expected):
    path, folder = recipe("nodes")
    processes = [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", name, sys.executable, "-m", "misotune", "train", str(path)),
                *("--nnodes", "2", "--node-rank", str(node), "--nproc", "1", "--master", f"{ADDRESSES[0]}:29511"),
            ],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for node, name in enumerate(hosts)
    ]
    try:
        said = [process.communicate(timeout=250)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-6000:]
    finished(folder, expected)
    assert [text.count("plan of nodes") for text in said] == [1, 0]


def test_a_hostfile_trains_on_both_hosts(tools, hostfile, recipe, expected):
    path, folder = recipe("ssh")
    done = run([sys.executable, "-m", "misotune", "train", str(path), "--hostfile", str(hostfile)], tools)
    assert done.returncode == 0, done.stderr[-6000:]
    finished(folder, expected)
    assert done.stderr.count("plan of ssh") == 1


def test_deepspeeds_own_launcher_trains_on_both_hosts(tools, hostfile, recipe, expected):
    path, folder = recipe("pdsh")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--no_local_rank"]
    launcher += ["--master_addr", ADDRESSES[0], "--module", "misotune", "train", str(path)]
    done = run(launcher, tools)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    finished(folder, expected)


def test_a_rank_that_dies_on_one_host_ends_those_on_the_other(tools, hostfile, recipe, tmp_path):
    path, _ = recipe("dies")
    command = [sys.executable, "-m", "misotune", "train", str(path), "train.max_steps=20000"]
    parent = subprocess.Popen(
        [*command, "--hostfile", str(hostfile)],
        env=environment(PATH=f"{tools}:{os.environ['PATH']}"),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = ""
        while "step 2/" not in said:
            line = parent.stderr.readline()
            assert line, said
            said += line
        ranks = [
            process
            for process in psutil.Process(parent.pid).children(recursive=True)
            if process.environ().get("RANK") == "1" and "misotune" in process.cmdline()
        ]
        begun = time.monotonic()
        ranks[0].kill()
        said = parent.stderr.read()
        assert parent.wait(60) == 1
        assert time.monotonic() - begun < 60
    finally:
        parent.kill()
        parent.communicate()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert all(f"rank 1 (process {ranks[0].pid}) was killed by SIGKILL" in line for line in errors), said
    assert errors


def run(command, tools):
    variables = environment(PATH=f"{tools}:{os.environ['PATH']}")
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=250)
