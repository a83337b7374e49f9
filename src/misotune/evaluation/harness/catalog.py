"""Which tasks lm-eval knows, and what their files say before anything of them is loaded."""

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager

from misotune.errors import UsageError
from misotune.evaluation.tasks import TASKS

_SHIPPED = Path(lm_eval.tasks.__file__).parent


def find_tasks(name: str, include_path: Path | None = None) -> TaskManager:
    """Returns an index of lm-eval's tasks that holds a task, or group of tasks, and all that belong to it.

    Reading all of lm-eval's 14,000 task files takes ten seconds, so the user's folder is read alone first, and then
    the folder of lm-eval's that a name like this lies in.

    Args:
        name: Of a task, a group or a tag.
        include_path: A folder with the user's own tasks.

    Raises:
        UsageError: There is no such folder, or no such task; names those that are called alike.
    """
    if include_path is not None and not include_path.is_dir():
        raise UsageError(f"--include-path {include_path}: no such folder")
    folders = [folder for folder in (include_path, *_folders_like(name)) if folder is not None]
    for folder in folders:
        manager = _index(folder, is_alone=True)
        if _is_whole(name, manager):
            return manager
    manager = _index(include_path, is_alone=False)
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, (*TASKS, *manager.all_tasks), n=3)
        hint = f"did you mean {', '.join(map(repr, near))}? " if near else ""
        raise UsageError(
            f"unknown task {name!r}; {hint}misotune's own: {', '.join(TASKS)}; all of lm-eval's: lm-eval ls tasks"
        )
    return manager


def configs_of(name: str, manager: TaskManager) -> dict[str, Mapping[str, Any]]:
    """Returns what the files say of a task, or of each task of a group or tag, by name; functions are names yet."""
    return {leaf: config for leaf, config in _walk(name, manager) if config is not None}


def _folders_like(name: str) -> Iterator[Path]:
    parts = name.split("_")
    for length in range(len(parts), 0, -1):
        folder = _SHIPPED / "_".join(parts[:length])
        if folder.is_dir():
            yield folder


@functools.lru_cache(maxsize=8)
def _index(folder: Path | None, *, is_alone: bool) -> TaskManager:
    return TaskManager(include_path=folder, include_defaults=not is_alone)


def _is_whole(name: str, manager: TaskManager) -> bool:
    """Returns whether a name and all that it leads to are in the index."""
    return name in manager.task_index and all(config is not None for _, config in _walk(name, manager))


def _walk(name: str, manager: TaskManager) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """Yields the tasks that a name leads to; None: the index does not have it."""
    entry = manager.task_index.get(name)
    if entry is None:
        yield name, None
    elif entry.kind.name == "TAG":
        for member in sorted(entry.tags):
            yield from _walk(member, manager)
    elif entry.kind.name == "GROUP":
        yield from _walk_members((entry.cfg or {}).get("task", ()), manager)
    else:
        yield name, entry.cfg or {}


def _walk_members(members: Iterable[Any], manager: TaskManager) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    for member in [members] if isinstance(members, str) else members:
        if isinstance(member, str):
            yield from _walk(member, manager)
        elif isinstance(member.get("task"), list):  # a group inside a group's file
            yield from _walk_members(member["task"], manager)
        elif "dataset_path" in member:  # a task inside a group's file
            yield str(member.get("task")), member
        else:
            yield from _walk(str(member.get("task", member.get("group"))), manager)
