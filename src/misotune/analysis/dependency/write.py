"""A dataset with the scores of its responses as two more columns.

`dependency` is the row's score, the mean over its responses; `dependency_by_turn` has one score for each response.
Both are null where nothing was scored: beyond `--limit`, or behind the longest length.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from misotune.analysis.dependency.responses import Dependency
from misotune.data.dataset import DATA_FILE, MANIFEST_FILE, open_dataset, read_manifest
from misotune.data.files import BrokenRow, read_rows
from misotune.data.indicator import COLUMN, TURNS_COLUMN
from misotune.errors import DataError, RunError, UsageError
from misotune.storage import sha256_of, whole_folder, write_whole

_LINES = ".jsonl"


def check_target(data: Path | None, target: Path) -> None:
    """Makes sure that the dataset with its scores may be written to `target`.

    Raises:
        UsageError: There is no dataset, `target` holds something else, or is a folder for a dataset that is a file.
    """
    if data is None:
        raise UsageError(f"--write {target}: the starter set is no dataset to write back; name one after the model")
    reason = None
    if target.suffix == _LINES:
        reason = f"is a folder; name a file that ends in {_LINES}" if target.is_dir() else None
    elif data.is_file():
        reason = f"{data} is a file of rows; name a file that ends in {_LINES}"
    elif not target.name:
        reason = "the working directory cannot be replaced; name a folder in it"
    elif target.is_file():
        reason = f"is a file; name a folder, or a file that ends in {_LINES}"
    elif target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_FILE).is_file():
        reason = "holds something that is not a misotune dataset; choose another place"
    if reason is not None:
        raise UsageError(f"--write {target}: {reason}")


def write_column(data: Path, target: Path, dependency: Dependency, origin: Mapping[str, Any]) -> None:
    """Writes the dataset with its scores, whole or not at all; `target` may be the dataset itself.

    Args:
        data: The dataset that was scored.
        target: A folder, or a file that ends in `.jsonl`.
        dependency: The scores.
        origin: What they were made with, for the manifest.

    Raises:
        UsageError: `target` holds something else.
        RunError: It cannot be written.
    """
    check_target(data, target)
    by_turn = _scores_by_row(dependency)
    if target.suffix == _LINES:
        _write_lines(data, target, by_turn)
        return
    with whole_folder(target, "dataset") as partial:
        for path in data.iterdir():
            if path.name not in (DATA_FILE, MANIFEST_FILE):
                copy = shutil.copytree if path.is_dir() else shutil.copy2
                copy(path, partial / path.name)
        _write_table(data / DATA_FILE, partial / DATA_FILE, by_turn)
        manifest = {**read_manifest(data), COLUMN: dict(origin), "data_sha256": sha256_of(partial / DATA_FILE)}
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (partial / MANIFEST_FILE).write_text(text, encoding="utf-8")


def _scores_by_row(dependency: Dependency) -> dict[int, list[float | None]]:
    found: dict[int, list[float | None]] = {}
    for response in dependency.responses:
        row = found.setdefault(response.row, [None] * response.num_turns)
        row[response.turn - 1] = response.score
    return found


def _columns(by_turn: Mapping[int, list[float | None]], number: int) -> tuple[float | None, list[float | None] | None]:
    scores = by_turn.get(number)
    if scores is None:
        return None, None
    return fmean(score for score in scores if score is not None), scores


def _write_table(data: Path, target: Path, by_turn: Mapping[int, list[float | None]]) -> None:
    """Writes the rows group by group, in the groups that they were in."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(data) as file:
        kept = [field for field in file.schema_arrow if field.name not in (COLUMN, TURNS_COLUMN)]
        added = [pa.field(COLUMN, pa.float32()), pa.field(TURNS_COLUMN, pa.list_(pa.float32()))]
        schema = pa.schema([*kept, *added])
        start = 0
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[field.name for field in kept])
                pairs = [_columns(by_turn, start + i) for i in range(table.num_rows)]
                for field, values in zip(added, zip(*pairs, strict=True), strict=True):
                    table = table.append_column(field, pa.array(values, field.type))
                writer.write_table(table.cast(schema))
                start += table.num_rows


def _write_lines(data: Path, target: Path, by_turn: Mapping[int, list[float | None]]) -> None:
    lines: list[str] = []
    for number, values in enumerate(_values(data)):
        score, turns = _columns(by_turn, number)
        lines.append(json.dumps({**values, COLUMN: score, TURNS_COLUMN: turns}, ensure_ascii=False) + "\n")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, "".join(lines).encode())
    except OSError as error:
        raise RunError(f"{target}: the dataset cannot be written: {error.strerror or error}") from error


def _values(data: Path) -> Iterator[Mapping[str, Any]]:
    """Yields a folder's rows in the form of a hand-written file, or a file's rows as they are."""
    if data.is_dir():
        yield from (sample.to_row() for sample in open_dataset(data))
        return
    for row in read_rows(data):
        if isinstance(row, BrokenRow):
            raise DataError(f"{row.where}: {row.reason}")
        yield row.values
