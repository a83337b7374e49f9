"""The sources by name. A new one is a function from a row to a record, and a line here."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.data.files import SUFFIXES, stem_of
from misotune.data.hub import is_hub_id
from misotune.data.records import Record
from misotune.data.sources.chat import chat_record
from misotune.data.sources.columns import columns_record, instruction_record
from misotune.data.sources.crab import HUB_ID as CRAB_HUB_ID
from misotune.data.sources.crab import crab_record
from misotune.data.sources.fields import Join, RowContext
from misotune.data.sources.r1 import r1_record
from misotune.data.starter import TRAIN_FILE
from misotune.errors import UsageError

ToRecord = Callable[[Mapping[str, Any], RowContext], Record]


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from and how one becomes a record.

    Attributes:
        name: What `prepare` calls it; the default dataset folder is `data/NAME-MODE`.
        to_record: Raises BadRowError or SkippedRowError for rows that it cannot or does not use.
        path: The file to read; None when it is on the hub, or has to be given with `--data`.
        hub_id: The data set on the hub; None when there is none.
        join: How constraints are joined to the instruction when the data do not say.
    """

    name: str
    to_record: ToRecord
    path: Path | None = None
    hub_id: str | None = None
    join: Join = "bullets"


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("crab", crab_record, hub_id=CRAB_HUB_ID),
        Source("sharegpt", chat_record),
        Source("r1", r1_record),
        Source("starter", instruction_record, path=TRAIN_FILE, join="mixed"),
    )
}


def find_source(name: str, data: Path | None = None) -> Source:
    """Returns the source that a command names: one of `SOURCES`, a file, or a hub id.

    Args:
        name: The name, path or hub id.
        data: A local file to read the rows from.

    Raises:
        UsageError: There is no such source, or it needs a file.
    """
    if name in SOURCES:
        return _located(SOURCES[name], data)
    if data is not None:
        raise UsageError(f"--data belongs to a named source ({', '.join(SOURCES)}); {name!r} is none of them")
    path = Path(name)
    if path.exists() or name.endswith(SUFFIXES):
        return Source(stem_of(path), columns_record, path=path)
    if is_hub_id(name):
        return Source(name.rpartition("/")[2], columns_record, hub_id=name)
    near = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"unknown source {name!r}: {hint}allowed are {', '.join(SOURCES)}, a data file, or a hub id (owner/name)"
    )


def _located(source: Source, data: Path | None) -> Source:
    if data is not None:
        return Source(source.name, source.to_record, path=data, join=source.join)
    if source.path is None and source.hub_id is None:
        raise UsageError(f"source {source.name!r} needs a file: misotune prepare {source.name} --data FILE")
    return source
