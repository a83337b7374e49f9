"""Rows of a data set on the Hugging Face hub; the one file that knows the `datasets` library."""

import re
from collections.abc import Iterator
from typing import Any

from misotune.data.files import Row
from misotune.errors import RunError, UsageError
from misotune.hub import reach_dataset

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def is_hub_id(name: str) -> bool:
    """True when `name` has the form owner/name, or owner/name:configuration."""
    return _HUB_ID.fullmatch(name) is not None


def read_hub_rows(hub_id: str, split: str, local_command: str, revision: str | None = None) -> Iterator[Row]:
    """Yields the rows of one split; downloaded once, then read from the local cache, a few at a time.

    Args:
        hub_id: owner/name, or owner/name:configuration for a data set that has several.
        split: The split's name.
        local_command: The command that reads a local copy instead, for the error.
        revision: Branch, tag or commit; None: the newest.

    Raises:
        UsageError: The data set has several configurations and none is named, or no such split.
        RunError: The data set cannot be reached.
    """
    import datasets

    name, _, configuration = hub_id.partition(":")
    try:
        reach_dataset(name, revision)
        rows: Any = datasets.load_dataset(name, configuration or None, split=split, revision=revision)
    except Exception as error:  # each network library below `datasets` raises its own
        raise _explained(error, hub_id, split, local_command, revision) from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{hub_id}: row {number}", number, dict(values))


def _explained(
    error: Exception, hub_id: str, split: str, local_command: str, revision: str | None
) -> UsageError | RunError:
    """The error in words that say what to change."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ValueError):
        if found := re.search(r"Unknown split .*?Should be one of \[(.*?)\]", text, re.DOTALL):
            return UsageError(f"{hub_id}: no split {split!r}; --split is one of {_unquoted(found[1])}")
        if found := re.search(r"among the available configs: \[(.*?)\]", text, re.DOTALL):
            return UsageError(
                f"{hub_id}: has several configurations; write {hub_id}:NAME, one of {_unquoted(found[1])}"
            )
        if found := re.search(r"BuilderConfig '?(.*?)'? not found. Available: \[(.*?)\]", text, re.DOTALL):
            return UsageError(f"{hub_id}: no configuration {found[1]!r}; there are {_unquoted(found[2])}")
    where = f"--split {split}" + (f", --revision {revision}" if revision else "")
    return RunError(
        f"{hub_id}: cannot be read from the hub ({text.splitlines()[0]:.160}); check its name, {where} "
        f"and the network, or read a local copy: {local_command} "
        "(a copy in the hub's cache: set HF_HUB_OFFLINE=1)"
    )


def _unquoted(names: str) -> str:
    return re.sub(r"['\"]", "", " ".join(names.split()))
