"""Looks at everything that misotune needs: the one function behind `misotune doctor`."""

from misotune.doctor import machine, packages, places, tools
from misotune.doctor.asking import TIMEOUT_S, Answer, ask_all
from misotune.doctor.finding import Finding, pip_install

# In this order they are imported in one process, since most import torch.
_WITH_TORCH = ("torch", "transformers", "kernels", "accelerate", "peft", "deepspeed", "bitsandbytes", "liger-kernel")


def examine(*, is_offline: bool = False, timeout_s: float = TIMEOUT_S) -> list[Finding]:
    """Returns what was found, in the order in which it is shown.

    Packages are imported in other processes, so one that is broken, ends the process or hangs is a finding.

    Args:
        is_offline: The hub is not asked.
        timeout_s: Seconds that importing all packages, or asking the hub, may take.
    """
    try:
        declared = packages.read_declared()
    except ImportError as error:
        detail = f"cannot be imported: {error}"
        cure = pip_install("packaging")
        return [Finding("packages", "packaging", "missing", detail, "all commands", cure, is_required=True)]
    names = packages.names_to_import(declared)
    with_torch = [name for name in _WITH_TORCH if name in names or name == "kernels"]
    without = [*(name for name in names if name not in with_torch), "punkt"]
    answers = ask_all([with_torch, without, ["hub"] if is_offline else ["hub", "reach"]], timeout_s)
    torch = answers.get("torch", Answer(error="torch is not installed"))
    gpus = torch.facts.get("gpus", [])
    hub = answers["hub"]
    return [
        *packages.examine_installation(declared),
        *packages.examine_packages(declared, answers),
        *machine.examine_machine(torch),
        *machine.examine_kernels(answers["kernels"]),
        *tools.examine_deepspeed(answers.get("deepspeed", Answer(error="not installed")), has_gpu=bool(gpus)),
        *tools.examine_launchers(),
        *places.examine_disk(hub, num_gpus=len(gpus)),
        *places.examine_network(hub, None if hub.facts.get("is_offline") else answers.get("reach"), answers["punkt"]),
        *packages.examine_optional(declared, answers, has_gpu=bool(gpus)),
    ]
