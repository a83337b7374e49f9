"""What the shell offers at TAB in place of a value. Where nothing fits, it offers files.

Each function takes the word as far as it is typed; typer leaves out what does not begin with it.
"""

from misotune.runs import RUNS_ROOT, RunFolder


def recipes(incomplete: str) -> list[str]:
    """Returns the shipped recipes."""
    from misotune.recipe.loading import shipped_recipes

    return [path.stem for path in shipped_recipes() if path.stem.startswith(incomplete)]


def mixtures(incomplete: str) -> list[str]:
    """Returns the shipped mixtures."""
    from misotune.recipe.loading import shipped_mixtures

    return [path.stem for path in shipped_mixtures() if path.stem.startswith(incomplete)]


def sources(incomplete: str) -> list[str]:
    """Returns the named sources of `prepare`."""
    from misotune.data.sources.registry import SOURCES

    return [name for name in SOURCES if name.startswith(incomplete)]


def tasks(incomplete: str) -> list[str]:
    """Returns misotune's own tasks; those of lm-eval are thousands, and slow to find."""
    from misotune.evaluation.tasks import TASKS

    return [name for name in TASKS if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Returns the names of the runs in runs/."""
    found = RUNS_ROOT.iterdir() if RUNS_ROOT.is_dir() else ()
    return sorted(path.name for path in found if path.name.startswith(incomplete) and RunFolder(path).recipe.is_file())
