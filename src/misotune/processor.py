"""What the processor is called, and whether it multiplies in bfloat16 itself."""

import platform
from pathlib import Path

INFO = Path("/proc/cpuinfo")
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


def processor_name(info: Path = INFO) -> str:
    """Returns the processor's name, or its kind where the system does not tell."""
    return _value("model name", info) or platform.machine()


def bf16_instructions(info: Path = INFO) -> str | None:
    """Returns what the processor multiplies bfloat16 with, '' for nothing; None: the system does not tell.

    Without it torch emulates bfloat16, and float32 is faster (docs/training.md, "Precision and memory").
    """
    flags = _value("flags", info) or _value("Features", info)  # of x86, of Arm
    return next((flag for flag in _BF16_FLAGS if flag in flags.split()), "") if flags else None


def _value(key: str, info: Path) -> str:
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")
