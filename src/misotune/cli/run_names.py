"""What people call a run on the command line: its name in runs/, or nothing at all for the newest."""

from pathlib import Path

from misotune.errors import UsageError
from misotune.runs import RUNS_ROOT, RunFolder


def named_path(name: str) -> str:
    """Returns `runs/NAME` for the name of a run, and everything else as it is: a folder here goes first."""
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        return name
    run = RUNS_ROOT / name
    return str(run) if run.is_dir() else name


def newest_run(root: Path = RUNS_ROOT) -> RunFolder:
    """Returns the run that wrote metrics last, whether it is finished or not.

    Raises:
        UsageError: No run below `root` has metrics.
    """
    runs = [RunFolder(path) for path in root.iterdir()] if root.is_dir() else []
    told = [run for run in runs if run.metrics.is_file()]
    if not told:
        raise UsageError(f"no run with metrics in {root}/; name a run, or train one: misotune train RECIPE")
    return max(told, key=lambda run: run.metrics.stat().st_mtime)
