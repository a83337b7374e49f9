"""The multi-input dataset on disk: the writer that `prepare` uses, and the reader for `train`.

NAME/
    data.parquet     the rows, in the form of `Sample.to_row`
    manifest.json    source, settings, account, and the hash of data.parquet
    README.md        the card, with which `datasets.load_dataset("NAME")` works
    dropped.jsonl    rows that could not be used, with file, line and reason (only when there are any)
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from misotune.data.account import BadRow
from misotune.data.card import dataset_card
from misotune.data.files import BrokenRow, read_rows
from misotune.errors import DataError, UsageError
from misotune.samples import Sample
from misotune.storage import replace_folder, sha256_of

FORMAT = 1
DATA_FILE = "data.parquet"
MANIFEST_FILE = "manifest.json"
DROPPED_FILE = "dropped.jsonl"
_BATCH_ROWS = 512


def _schema() -> Any:
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


class DatasetWriter:
    """Writes a dataset beside its final place; `finish` puts it there, leaving early puts nothing there.

    Args:
        out: The dataset's folder; an older dataset there is replaced whole, anything else is left alone.

    Raises:
        UsageError: `out` holds something that is not a dataset.
    """

    def __init__(self, out: Path) -> None:
        _check_replaceable(out)
        self.out = out
        self.num_rows = 0
        self._partial = out.with_name(f".{out.name}.partial")
        self._batch: list[dict[str, Any]] = []
        self._writer: Any = None

    def __enter__(self) -> "DatasetWriter":
        import pyarrow.parquet

        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._writer = pyarrow.parquet.ParquetWriter(self._partial / DATA_FILE, _schema(), compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, sample: Sample) -> None:
        """Appends one row."""
        self._batch.append(sample.to_row())
        self.num_rows += 1
        if len(self._batch) >= _BATCH_ROWS:
            self._flush()

    def add_dropped(self, row: BadRow) -> None:
        """Notes a row that could not be used."""
        with (self._partial / DROPPED_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"where": row.where, "reason": row.reason}, ensure_ascii=False) + "\n")

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Writes manifest and card, and puts the folder in its place.

        Args:
            manifest: Everything but `format`, `misotune`, `rows` and `data_sha256`, which are added here.
        """
        from importlib.metadata import PackageNotFoundError, version

        self._flush()
        self._writer.close()
        self._writer = None
        try:
            misotune_version = version("misotune")
        except PackageNotFoundError:  # run from a source tree that is not installed
            misotune_version = "unknown"
        whole = {
            "format": FORMAT,
            "misotune": misotune_version,
            **manifest,
            "rows": self.num_rows,
            "data_sha256": sha256_of(self._partial / DATA_FILE),
        }
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        (self._partial / MANIFEST_FILE).write_text(text, encoding="utf-8")
        (self._partial / "README.md").write_text(dataset_card(self.out.name, whole), encoding="utf-8")
        replace_folder(self._partial, self.out)

    def _flush(self) -> None:
        import pyarrow as pa

        if self._batch:
            self._writer.write_table(pa.Table.from_pylist(self._batch, schema=_schema()))
            self._batch.clear()


def _check_replaceable(out: Path) -> None:
    if out.is_file():
        raise UsageError(f"{out}: is a file; choose a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise UsageError(f"{out}: holds something that is not a misotune dataset; choose another --out")


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of a dataset folder.

    Raises:
        DataError: There is none, or it is of another format.
    """
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise DataError(f"{path}: not a prepared dataset (there is no {MANIFEST_FILE}); write one: misotune prepare")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: broken ({error}); prepare the dataset again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise DataError(f"{file}: format {found!r}, this misotune reads {FORMAT}; prepare the dataset again")
    return manifest


def read_dataset(path: Path) -> list[Sample]:
    """Returns the samples of a dataset folder, or of a hand-written JSON lines file of such rows.

    Raises:
        DataError: The dataset is missing, was changed after it was written, or a row is wrong.
    """
    if path.is_file():
        return _read_samples(path)
    if not path.exists():
        source, _, mode = path.name.rpartition("-")
        command = f"misotune prepare {source} --mode {mode}" if source else "misotune prepare SOURCE"
        raise DataError(f"{path}: no such dataset; write it: {command}")
    manifest = read_manifest(path)
    data = path / DATA_FILE
    if not data.is_file():
        raise DataError(f"{data}: no such file; prepare the dataset again")
    if sha256_of(data) != manifest.get("data_sha256"):
        raise DataError(f"{data}: differs from its {MANIFEST_FILE} (data_sha256); prepare the dataset again")
    return _read_samples(data)


def _read_samples(path: Path) -> list[Sample]:
    samples: list[Sample] = []
    for row in read_rows(path):
        if isinstance(row, BrokenRow):
            raise DataError(f"{row.where}: {row.reason}")
        samples.append(Sample.from_row(row.values, row.where))
    return samples
