"""The sources by name. A new one is a function from a row to a record, and a line here."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from misotune.data.files import SUFFIXES, stem_of
from misotune.data.hub import is_hub_id
from misotune.data.records import Record
from misotune.data.sources.chat import chat_record
from misotune.data.sources.columns import columns_record, instruction_record
from misotune.data.sources.crab import HUB_ID as CRAB_HUB_ID
from misotune.data.sources.crab import MIN_CONFIDENCE, crab_record
from misotune.data.sources.fields import Join, RowContext
from misotune.data.sources.mapping import check_columns, mapped_record
from misotune.data.sources.r1 import r1_record
from misotune.data.sources.thinking import THINKS, Think
from misotune.data.starter import TRAIN_FILE
from misotune.errors import UsageError

ToRecord = Callable[[Mapping[str, Any], RowContext], Record]


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from and how one becomes a record; picklable, so that worker processes can make records.

    Attributes:
        name: What `prepare` calls it; the default dataset folder is `data/NAME-MODE`.
        to_record: Raises BadRowError or SkippedRowError for rows that it cannot or does not use.
        path: The file to read; None when it is on the hub, or has to be given with `--data`.
        hub_id: The data set on the hub; None when there is none.
        join: How constraints are joined to the instruction when the data do not say.
        revision: Branch, tag or commit on the hub; None: the newest.
    """

    name: str
    to_record: ToRecord
    path: Path | None = None
    hub_id: str | None = None
    join: Join = "bullets"
    revision: str | None = None


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("crab", crab_record, hub_id=CRAB_HUB_ID),
        Source("sharegpt", chat_record),
        Source("r1", r1_record),
        Source("starter", instruction_record, path=TRAIN_FILE, join="mixed"),
    )
}


def find_source(
    name: str,
    data: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    think: Think = "input",
    keep_reverse: bool = False,
    min_confidence: float = MIN_CONFIDENCE,
    revision: str | None = None,
) -> Source:
    """Returns the source that a command names: one of `SOURCES`, a file, or a hub id.

    Args:
        name: The name, path or hub id (`owner/name`, or `owner/name:configuration`).
        data: A local file to read the rows from.
        columns: The data's column for each name that the source looks for, where they differ.
        think: Where the thinking of reasoning traces goes.
        keep_reverse: Keep Crab's rows of the auxiliary task.
        min_confidence: Crab rows split less certainly than this, from 0 to 1, stay one input.
        revision: Branch, tag or commit of a hub data set.

    Raises:
        UsageError: There is no such source, it needs a file, or an option does not belong to it.
    """
    source = _named(name, data)
    to_record = _with_options(source, think, keep_reverse, min_confidence)
    if columns:
        check_columns(columns)
        to_record = partial(mapped_record, to_record=to_record, columns=tuple(sorted(columns.items())))
    if revision is not None and source.path is not None:
        raise UsageError(f"--revision belongs to a data set on the hub; {source.path} is a file")
    return replace(source, to_record=to_record, revision=revision)


def _named(name: str, data: Path | None) -> Source:
    if name in SOURCES:
        return _located(SOURCES[name], data)
    if data is not None:
        raise UsageError(f"--data belongs to a named source ({', '.join(SOURCES)}); {name!r} is none of them")
    path = Path(name)
    if path.exists() or name.endswith(SUFFIXES):
        return Source(stem_of(path), columns_record, path=path)
    if is_hub_id(name):
        return Source(name.partition(":")[0].rpartition("/")[2], columns_record, hub_id=name)
    near = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"unknown source {name!r}: {hint}allowed are {', '.join(SOURCES)}, a data file, or a hub id (owner/name)"
    )


def _located(source: Source, data: Path | None) -> Source:
    if data is not None:
        return replace(source, path=data, hub_id=None)
    if source.path is None and source.hub_id is None:
        raise UsageError(f"source {source.name!r} needs a file: misotune prepare {source.name} --data FILE")
    return source


def _with_options(source: Source, think: Think, keep_reverse: bool, min_confidence: float) -> ToRecord:
    if think not in THINKS:
        raise UsageError(f"--think {think}: allowed are {', '.join(THINKS)}")
    if not 0 <= min_confidence <= 1:
        raise UsageError(f"--min-confidence {min_confidence:g}: must be from 0 to 1")
    if source.to_record is crab_record:
        return partial(crab_record, keep_reverse=keep_reverse, min_confidence=min_confidence)
    if keep_reverse:
        raise UsageError(f"--keep-reverse belongs to the source crab; {source.name!r} has no reverse rows")
    for reads_thinking in (chat_record, r1_record, columns_record):
        if source.to_record is reads_thinking:
            return partial(reads_thinking, think=think)
    return source.to_record
