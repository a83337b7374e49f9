"""Programs that start training on several machines, and the compilers of which some kernels ask."""

import os
import shutil
import sys
from pathlib import Path

from misotune.doctor.asking import Answer
from misotune.doctor.finding import Finding, pip_install, system_install

_OWN_KERNELS = "a DeepSpeed file of your own with DeepSpeed's AdamW or NVMe offload; misotune's own need none"


def examine_launchers() -> list[Finding]:
    """Returns which launchers are here."""
    torchrun = Finding("launchers", "misotune train --nproc", "ok", "built in", "several GPUs on one machine")
    if _find("torchrun") is None:
        cure = pip_install("--force-reinstall", "--no-deps", "torch")
        second = Finding("launchers", "torchrun", "missing", "not here", "torchrun -m misotune train", cure)
    else:
        second = Finding("launchers", "torchrun", "ok", str(_find("torchrun")), "torchrun -m misotune train")
    ssh = {"apt-get": "openssh-client", "dnf": "openssh-clients", "apk": "openssh-client"}
    pdsh = {"apt-get": "pdsh", "dnf": "pdsh", "brew": "pdsh"}
    return [
        torchrun,
        second,
        _program("srun", "misotune launch slurm", None, hint="it comes with a Slurm cluster"),
        _program("ssh", "misotune train --hostfile", system_install(ssh)),
        _program("pdsh", "DeepSpeed's own launcher; train --hostfile needs none", system_install(pdsh)),
    ]


def examine_deepspeed(deepspeed: Answer, *, has_gpu: bool) -> list[Finding]:
    """Returns whether DeepSpeed runs here, and whether it could compile kernels of its own."""
    purpose = "ZeRO and offload (the recipe's section deepspeed)"
    if deepspeed.error is not None:
        # Its cure stands with the packages.
        usable = Finding("deepspeed", "accelerator", "problem", deepspeed.error, purpose)
    else:
        detail = f"{deepspeed.facts['accelerator']}; misotune's own settings compile nothing"
        usable = Finding("deepspeed", "accelerator", "ok", detail, purpose)
    return [usable, _compiler(has_gpu=has_gpu)]


def _compiler(*, has_gpu: bool) -> Finding:
    compiler = os.environ.get("CXX", "g++")
    lacks: dict[str, str | None] = {}
    if shutil.which(compiler) is None:
        lacks[compiler] = system_install({"apt-get": "g++", "dnf": "gcc-c++", "apk": "g++"})
    if _find("ninja") is None:
        lacks["ninja"] = pip_install("ninja")
    home = os.environ.get("CUDA_HOME")
    if has_gpu and shutil.which("nvcc") is None and not (home and Path(home, "bin", "nvcc").is_file()):
        lacks["nvcc"] = "export CUDA_HOME=FOLDER   # of a CUDA toolkit of torch's version"
    if not lacks:
        return Finding("deepspeed", "compiler", "ok", f"{compiler}, ninja" + (", nvcc" * has_gpu), _OWN_KERNELS)
    cure = " && ".join(command for command in lacks.values() if command) or None
    return Finding("deepspeed", "compiler", "missing", f"no {', no '.join(lacks)}", _OWN_KERNELS, cure)


def _program(name: str, purpose: str, cure: str | None, hint: str = "") -> Finding:
    found = shutil.which(name)
    if found:
        return Finding("launchers", name, "ok", found, purpose)
    return Finding("launchers", name, "missing", f"not here{'; ' + hint if hint else ''}", purpose, cure)


def _find(program: str) -> str | None:
    """Returns a program of this Python's environment, which need not be on PATH, or of the machine."""
    own = Path(sys.executable).with_name(program)
    return str(own) if own.is_file() else shutil.which(program)
