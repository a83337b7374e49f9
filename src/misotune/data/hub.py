"""Rows of a data set on the Hugging Face hub; the one file that knows the `datasets` library."""

import re
from collections.abc import Iterator
from typing import Any

from misotune.data.files import Row
from misotune.errors import RunError

_TIMEOUT_S = 10
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """True when `name` has the form owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def read_hub_rows(hub_id: str, split: str, local_command: str) -> Iterator[Row]:
    """Yields the rows of one split; downloaded once, then read from the local cache.

    Args:
        hub_id: owner/name.
        split: The split's name.
        local_command: The command that reads a local copy instead, for the error.

    Raises:
        RunError: The data set cannot be reached, or has no such split.
    """
    import datasets
    import datasets.config
    import huggingface_hub

    try:
        if not datasets.config.HF_HUB_OFFLINE:
            # Asked first, and once: on its own `load_dataset` tries a dead network for half a minute.
            huggingface_hub.HfApi().dataset_info(hub_id, timeout=_TIMEOUT_S)
        rows: Any = datasets.load_dataset(hub_id, split=split)
    except Exception as error:  # each network library below `datasets` raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{hub_id}: cannot be read from the hub ({reason:.160}); check its name, --split {split} "
            f"and the network, or read a local copy: {local_command} "
            "(a copy in the hub's cache: set HF_HUB_OFFLINE=1)"
        ) from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{hub_id}: row {number}", number, dict(values))
