"""Cores, memory, GPUs and kernels, on machines that are not this one."""

import pytest

from misotune.doctor import machine
from misotune.doctor.asking import Answer
from misotune.doctor.machine import Limits, examine_kernels, examine_machine, read_limits

GIB = 2**30
NO_GPU = {"cuda": "13.0", "hip": None, "has_gpu": False, "gloo": True, "warning": None, "gpus": []}
H100 = {
    "name": "NVIDIA H100",
    "capability": [9, 0],
    "total": 80 * GIB,
    "free": 79 * GIB,
    "peers": [],
    "error": None,
}


@pytest.fixture(autouse=True)
def smi(tmp_path, monkeypatch):
    """A function that puts an nvidia-smi on the path; without it there is none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(output, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{output}'\nexit {code}\n")
        program.chmod(0o755)

    return put


def gpu_finding(facts):
    return next(one for one in examine_machine(Answer(facts=facts)) if one.name.startswith("GPU"))


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_limits_of_version_2_are_the_tightest_on_the_way_up(tmp_path):
    write(tmp_path / "a", memory__max=f"{8 * GIB}\n", memory__current=f"{GIB}\n", cpu__max="max 100000\n")
    write(tmp_path / "a/b", memory__max="max\n", memory__current="77\n", cpu__max="150000 100000\n")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    assert read_limits(tmp_path, own) == Limits(8 * GIB, GIB, 1.5)


def test_limits_of_version_1_are_read_where_the_containers_own_path_is_not_there(tmp_path):
    write(tmp_path / "memory", **{"memory__limit_in_bytes": f"{4 * GIB}\n", "memory__usage_in_bytes": f"{GIB}\n"})
    write(tmp_path / "cpu,cpuacct", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    own = tmp_path / "own"
    own.write_text("5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n")
    assert read_limits(tmp_path, own) == Limits(4 * GIB, GIB, None)


def test_without_control_groups_there_are_no_limits(tmp_path):
    assert read_limits(tmp_path, tmp_path / "none") == Limits()


def test_a_tight_control_group_is_a_problem_of_memory(monkeypatch):
    monkeypatch.setattr(machine, "read_limits", lambda: Limits(4 * GIB, 3 * GIB, 1.5))
    found = {one.name: one for one in examine_machine(Answer(facts=NO_GPU))}
    assert found["memory"].state == "problem"
    assert "1.0 GiB available; a control group allows 4.0 GiB" in found["memory"].detail
    assert "the time of 1.5" in found["CPU"].detail


def test_without_a_gpu_nothing_is_broken():
    assert (gpu_finding(NO_GPU).state, gpu_finding(NO_GPU).is_fatal) == ("missing", False)


def test_a_failing_nvidia_smi_is_as_none(smi):
    smi("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver", code=9)
    assert gpu_finding(NO_GPU).detail == "none: models run on the CPU"


@pytest.mark.parametrize(
    ("facts", "said", "cure"),
    [
        ({"cuda": None}, "this torch is built without CUDA", "--index-url https://pypi.org/simple torch"),
        (
            {"warning": "The NVIDIA driver on your system is too old (found version 11040)."},
            "torch for CUDA 13.0 cannot use it: The NVIDIA driver on your system is too old",
            "--index-url https://download.pytorch.org/whl/cu126 torch",
        ),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_fatal(smi, facts, said, cure):
    smi("NVIDIA H100, 81559, 470.57")
    finding = gpu_finding(NO_GPU | facts)
    assert finding.is_fatal
    assert said in finding.detail
    assert "driver 470.57" in finding.detail
    assert cure in finding.cure


def test_a_hidden_gpu_is_the_users_choice(smi, monkeypatch):
    smi("NVIDIA H100, 81559, 570.1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = gpu_finding(NO_GPU)
    assert (finding.state, finding.cure, finding.is_fatal) == ("missing", "unset CUDA_VISIBLE_DEVICES", False)


def test_a_gpu_is_described(smi):
    smi("NVIDIA H100, 81559, 570.1")
    finding = gpu_finding(NO_GPU | {"has_gpu": True, "gpus": [H100]})
    assert finding.state == "ok"
    assert finding.detail == "NVIDIA H100, 79.0 GiB free of 80.0 GiB, CUDA 13.0, driver 570.1; bf16"


def test_an_old_gpu_is_told_which_key_serves_it():
    finding = gpu_finding(NO_GPU | {"has_gpu": True, "gpus": [H100 | {"name": "V100", "capability": [7, 0]}]})
    assert (finding.state, finding.cure) == ("problem", "misotune train RECIPE train.precision=fp32")


def test_a_gpu_that_cannot_multiply_is_fatal():
    finding = gpu_finding(NO_GPU | {"has_gpu": True, "gpus": [{"name": "GPU 0", "error": "no kernel image"}]})
    assert finding.is_fatal
    assert "no kernel image" in finding.detail


@pytest.mark.parametrize(
    ("peers", "said"), [([1], "GPUs reach one another directly"), ([], "some GPUs talk by way of the host")]
)
def test_several_gpus_are_told_how_they_talk(monkeypatch, peers, said):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    gpus = [H100 | {"peers": peers}, H100 | {"peers": [0]}]
    found = examine_machine(Answer(facts=NO_GPU | {"has_gpu": True, "gpus": gpus, "nccl": "2.29.3"}))
    (collectives,) = [one for one in found if one.name == "collectives"]
    assert collectives.state == "ok"
    assert collectives.detail.startswith("NCCL 2.29.3; ")
    assert "NCCL_SOCKET_IFNAME=eth0" in collectives.detail
    assert said in collectives.detail


def test_a_torch_that_cannot_be_imported_leaves_the_gpu_open(smi):
    smi("NVIDIA H100, 81559, 570.1")
    found = examine_machine(Answer(error="OSError: libtorch"))
    assert [one.state for one in found if one.name == "GPU"] == ["skipped"]
    assert not any(one.name == "collectives" for one in found)


def test_kernels_are_named_with_the_reason_where_flash_is_not_taken():
    rows = [{"device": "cuda", "precision": "fp32", "kernel": "eager", "no_flash": "on CUDA it takes bfloat16"}]
    (finding,) = examine_kernels(Answer(facts={"kernels": rows}))
    assert (finding.name, finding.detail) == ("cuda, fp32", "eager; no flash: on CUDA it takes bfloat16")
    (broken,) = examine_kernels(Answer(error="ImportError: torch"))
    assert broken.is_fatal
