"""What the doctor found, one thing at a time, and the commands that mend it."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

State = Literal["ok", "missing", "problem", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: What it belongs to: `packages`, `devices`, ...
        name: What was looked at.
        state: `ok`; `missing`: not here; `problem`: here, and not as it must be; `skipped`: not looked at.
        detail: What was found.
        needed_for: The feature that needs it.
        cure: The command that mends it; None: there is nothing to mend, or no command does.
        is_required: Whether misotune cannot do its work without it.
    """

    group: str
    name: str
    state: State
    detail: str
    needed_for: str
    cure: str | None = None
    is_required: bool = False

    @property
    def is_bad(self) -> bool:
        """Whether it is missing or a problem."""
        return self.state in ("missing", "problem")

    @property
    def is_fatal(self) -> bool:
        """Whether misotune cannot do its work because of it."""
        return self.is_bad and self.is_required


def pip_install(*arguments: str) -> str:
    """Returns the command that installs packages for the Python that runs misotune."""
    words = shlex.join(arguments)
    if find_spec("pip") is None and shutil.which("uv"):
        return f"uv pip install --python {shlex.quote(sys.executable)} {words}"
    return f"{python_command()} -m pip install {words}"


def python_command() -> str:
    """Returns how a shell starts the Python that runs misotune."""
    found = shutil.which("python")
    # Not resolved: the links of two virtual environments lead to one Python.
    return "python" if found and Path(found).parent == Path(sys.executable).parent else shlex.quote(sys.executable)


def system_install(packages: Mapping[str, str]) -> str | None:
    """Returns the command that installs a package of the operating system.

    Args:
        packages: Its name for each package manager that has it.
    """
    for manager, package in packages.items():
        if shutil.which(manager):
            root = "" if not hasattr(os, "geteuid") or os.geteuid() == 0 or manager == "brew" else "sudo "
            return f"{root}{manager} install {'' if manager == 'brew' else '-y '}{package}"
    return None


def in_gib(number: float) -> str:
    """Returns bytes as people read them: `1.5 GiB`, below that `300 MiB`."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"
