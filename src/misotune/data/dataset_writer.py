"""Writes the folder of a multi-input dataset, whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from misotune.data.account import DroppedRow
from misotune.data.card import dataset_card
from misotune.errors import UsageError
from misotune.packages import installed_version
from misotune.samples import Sample
from misotune.storage import recover_folder, replace_folder, sha256_of

FORMAT = 1
DATA_FILE = "data.parquet"
MANIFEST_FILE = "manifest.json"
DROPPED_FILE = "dropped.jsonl"
CHECKS_FILE = "checks.jsonl"
# Random access decodes the group of rows that holds the row; smaller ones would compress worse.
ROW_GROUP_ROWS = 256


def schema() -> Any:
    """Returns the Arrow schema of a dataset's rows."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    entry = pa.struct([("role", pa.string()), ("messages", pa.list_(message)), ("constraint", pa.string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("source", pa.string()),
            ("domain", pa.string()),
            ("inputs", pa.list_(entry)),
            ("output", pa.string()),
            ("history_loss", pa.bool_()),
            ("chunk", pa.string()),
            ("confidence", pa.float32()),
            ("rule", pa.string()),
        ]
    )


def table_of(samples: Sequence[Sample]) -> Any:
    """Returns rows as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_pylist([sample.to_row() for sample in samples], schema=schema())


class DatasetWriter:
    """Writes a dataset beside its final place; `finish` puts it there, leaving early puts nothing there.

    Args:
        out: The dataset's folder; an older dataset there is replaced whole, anything else is left alone.

    Raises:
        UsageError: `out` holds something that is not a dataset.
    """

    def __init__(self, out: Path) -> None:
        recover_folder(out)
        _check_replaceable(out)
        self.out = out
        self.num_rows = 0
        self._partial = out.with_name(f".{out.name}.partial")
        self._batch: list[Sample] = []
        self._writer: Any = None
        self._line_files: dict[str, IO[str]] = {}
        self._lock: int | None = None

    def __enter__(self) -> "DatasetWriter":
        """Raises UsageError when another process writes to the same place."""
        import pyarrow.parquet

        self._lock = _locked(self._partial, self.out)
        for path in self._partial.iterdir():  # what a killed process left
            path.unlink()
        self._writer = pyarrow.parquet.ParquetWriter(self._partial / DATA_FILE, schema(), compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        for file in self._line_files.values():
            file.close()
        if self._lock is not None:
            if self._partial.exists() and os.path.samestat(os.fstat(self._lock), self._partial.stat()):
                shutil.rmtree(self._partial, ignore_errors=True)
            os.close(self._lock)

    def add(self, sample: Sample) -> None:
        """Appends one row."""
        self._batch.append(sample)
        self.num_rows += 1
        if len(self._batch) >= ROW_GROUP_ROWS:
            self._flush()

    def add_dropped(self, row: DroppedRow) -> None:
        """Notes a row that was left out or changed."""
        self._add_line(DROPPED_FILE, row.to_dict())

    def add_checks(self, row_id: str, checks: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Notes what verifies the constraints of a row, in their order: types and arguments, as in IFEval."""
        names, kwargs = [name for name, _ in checks], [dict(arguments) for _, arguments in checks]
        self._add_line(CHECKS_FILE, {"id": row_id, "instruction_id_list": names, "kwargs": kwargs})

    def add_file(self, name: str, text: str) -> None:
        """Puts another file into the folder, such as a picture."""
        (self._partial / name).write_text(text, encoding="utf-8")

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Writes manifest and card, and puts the folder in its place.

        Args:
            manifest: Everything but `format`, `misotune`, `rows` and `data_sha256`, which are added here.
        """
        self._flush()
        self._writer.close()
        self._writer = None
        for file in self._line_files.values():
            file.close()
        whole = {
            "format": FORMAT,
            "misotune": installed_version("misotune") or "unknown",
            **manifest,
            "rows": self.num_rows,
            "data_sha256": sha256_of(self._partial / DATA_FILE),
        }
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        self.add_file(MANIFEST_FILE, text)
        self.add_file("README.md", dataset_card(self.out.name, whole))
        replace_folder(self._partial, self.out)

    def _add_line(self, name: str, values: Mapping[str, Any]) -> None:
        if name not in self._line_files:
            self._line_files[name] = (self._partial / name).open("w", encoding="utf-8")
        self._line_files[name].write(json.dumps(values, ensure_ascii=False) + "\n")

    def _flush(self) -> None:
        if self._batch:
            self._writer.write_table(table_of(self._batch))
            self._batch.clear()


def _locked(partial: Path, out: Path) -> int:
    """Makes the folder and locks it; the kernel takes the lock back from a process that was killed."""
    import fcntl

    partial.mkdir(parents=True, exist_ok=True)
    folder = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise UsageError(f"{out}: another prepare is writing it; wait for it, or choose another --out") from None
    except OSError:
        pass  # a file system without locks
    return folder


def _check_replaceable(out: Path) -> None:
    if out.is_file():
        raise UsageError(f"{out}: is a file; choose a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise UsageError(f"{out}: holds something that is not a misotune dataset; choose another --out")
