"""Disk, hub, NLTK's data, launchers and compilers."""

from collections import namedtuple

import pytest

from misotune.doctor import places
from misotune.doctor.asking import Answer
from misotune.doctor.places import examine_disk, examine_network
from misotune.doctor.tools import examine_deepspeed, examine_launchers

GIB = 2**30
HUB = {"endpoint": "https://huggingface.co", "is_offline": False, "cache": "/nowhere/hub", "has_token": False}
HERE = Answer(facts={"is_here": True})
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in (*places._OFFLINE_VARIABLES, *places._PROXIES, "HF_TOKEN", "CXX", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)


def disk(monkeypatch, free, num_gpus=1):
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: Usage(free, 0, free))
    return {one.name: one for one in examine_disk(Answer(facts=HUB), num_gpus=num_gpus)}


def network(hub=HUB, reach=None, punkt=HERE):
    return {one.name: one for one in examine_network(Answer(facts=hub), reach, punkt)}


def test_a_full_disk_is_fatal_for_the_working_folder_alone(monkeypatch):
    found = disk(monkeypatch, GIB)
    assert found["working folder"].is_fatal
    assert "output.runs_dir" in found["working folder"].cure
    assert (found["hub's cache"].state, found["hub's cache"].is_fatal) == ("problem", False)
    assert "HF_HOME" in found["hub's cache"].cure
    assert {one.state for one in disk(monkeypatch, 90 * GIB).values()} == {"ok"}


def test_a_folder_that_cannot_be_written_is_fatal(monkeypatch):
    monkeypatch.setattr(places.os, "access", lambda *_: False)
    found = disk(monkeypatch, 90 * GIB)
    assert found["working folder"].is_fatal
    assert "cannot be written" in found["working folder"].detail
    assert "cannot be written" in found["hub's cache"].detail


@pytest.mark.parametrize(("num_gpus", "state"), [(1, "ok"), (2, "problem")])
def test_small_shared_memory_matters_to_several_gpus(monkeypatch, tmp_path, num_gpus, state):
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: Usage(64 * 2**20, 0, 64 * 2**20))
    (finding,) = places._shared_memory(tmp_path, num_gpus)
    assert finding.state == state
    assert finding.cure is None or "--shm-size=8g" in finding.cure


def test_a_hub_that_answers_is_fine():
    assert network(reach=Answer(facts={"status": 200}))["hub"].state == "ok"


def test_a_hub_that_does_not_answer_is_a_problem_but_not_fatal(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:3128")
    finding = network(reach=Answer(error="ConnectError: Name or service not known"))["hub"]
    assert (finding.state, finding.is_fatal) == ("problem", False)
    assert "by the proxy of HTTPS_PROXY (ConnectError" in finding.detail
    assert "secret" not in finding.detail
    assert finding.cure.startswith("export HF_HUB_OFFLINE=1")


@pytest.mark.parametrize(
    ("has_token", "status", "said", "cure"),
    [
        (True, 401, "refuses the token (401)", "hf auth login"),
        (False, 403, "asks for a token (403)", "hf auth login"),
        (True, 503, "does not answer (HTTP 503)", "export HF_HUB_OFFLINE=1"),
    ],
)
def test_a_hub_that_refuses_says_why(has_token, status, said, cure):
    finding = network(HUB | {"has_token": has_token}, Answer(facts={"status": status}))["hub"]
    assert finding.state == "problem"
    assert said in finding.detail
    assert finding.cure.startswith(cure)


def test_offline_is_not_a_fault(monkeypatch):
    assert network()["hub"].detail.endswith("not asked (--offline)")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    finding = network(HUB | {"is_offline": True})["hub"]
    assert finding.state == "skipped"
    assert "HF_HUB_OFFLINE=1" in finding.detail


def test_neither_token_nor_password_is_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = network(HUB | {"has_token": True, "endpoint": "https://me:secret@mirror.example:8443/hf"})
    assert found["hub token"].detail == "set, by HF_TOKEN"
    assert found["hub"].detail.startswith("https://mirror.example:8443/hf;")
    assert "secret" not in str(found)


def test_missing_punkt_names_the_download():
    assert "nltk.downloader punkt_tab" in network(punkt=Answer(facts={"is_here": False}))["NLTK punkt_tab"].cure
    assert network(punkt=Answer(error="no nltk"))["NLTK punkt_tab"].state == "skipped"


def test_a_broken_hub_client_is_said():
    found = examine_network(Answer(error="ImportError: httpx"), None, HERE)
    assert [(one.name, one.state) for one in found] == [("hub", "problem"), ("NLTK punkt_tab", "ok")]


def test_launchers_that_are_missing_have_the_machines_own_command(tmp_path, monkeypatch):
    (tmp_path / "apt-get").write_text("#!/bin/sh\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {one.name: one for one in examine_launchers()}
    assert found["pdsh"].cure.endswith("apt-get install -y pdsh")
    assert found["ssh"].cure.endswith("apt-get install -y openssh-client")
    assert (found["srun"].state, found["srun"].cure) == ("missing", None)
    assert found["torchrun"].state == "ok"  # beside this Python, though not on the path


def test_deepspeed_tells_its_accelerator_and_what_a_compiler_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {one.name: one for one in examine_deepspeed(Answer(facts={"accelerator": "cuda"}), has_gpu=True)}
    assert found["accelerator"].detail.startswith("cuda; ")
    assert found["compiler"].state == "missing"
    assert "no g++" in found["compiler"].detail
    assert "no nvcc" in found["compiler"].detail
    assert "CUDA_HOME" in found["compiler"].cure
    assert "nvcc" not in examine_deepspeed(Answer(error="x"), has_gpu=False)[1].detail
