"""The multi-input dataset on disk: its form, and the reader for `train` and `preview`.

NAME/
    data.parquet     the rows, in the form of `Sample.to_row`
    manifest.json    source, settings, account, statistics, and the hash of data.parquet
    README.md        the card, with which `datasets.load_dataset("NAME")` works
    dropped.jsonl    rows left out or changed, with file, line and reason (only when there are any)
    checks.jsonl     what verifies the constraints of a row (only of rows that were back-translated)
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from misotune.data.dataset_writer import DATA_FILE, FORMAT, MANIFEST_FILE, ROW_GROUP_ROWS, DatasetWriter, table_of
from misotune.data.files import BrokenRow, read_rows
from misotune.errors import DataError
from misotune.samples import Sample
from misotune.storage import recover_folder, sha256_of

__all__ = ["DATA_FILE", "MANIFEST_FILE", "Dataset", "DatasetWriter", "open_dataset", "read_dataset", "read_manifest"]

_GROUPS_IN_MEMORY = 4
_NUM_TRIES = 3


class Dataset(Sequence[Sample]):
    """The rows of a dataset, read as they are asked for; a few groups of rows at a time are in memory.

    Attributes:
        path: The folder, or the hand-written file.
        manifest: The folder's manifest; empty for a file.
        sha256: The hash of the file that holds the rows.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        sha256: str,
        sizes: Sequence[int],
        load: Callable[[int, Sequence[str] | None], Any],
    ) -> None:
        """Takes the sizes of the groups of rows, and what loads one (all of its columns, or those named)."""
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256
        self._starts = [0, *accumulate(sizes)]
        self._load = load
        self._loaded: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path}: no row {index}, there are {len(self)}")
        group = bisect_right(self._starts, number) - 1
        (row,) = self._group(group).slice(number - self._starts[group], 1).to_pylist()
        return self._sample(row, number)

    def __iter__(self) -> Iterator[Sample]:
        for group, start in enumerate(self._starts[:-1]):
            rows = self._load(group, None).to_pylist()
            yield from (self._sample(row, number) for number, row in enumerate(rows, start=start))

    def column(self, name: str) -> list[Any]:
        """Returns one column of all rows, such as `id`, `chunk` or `confidence`, without reading the others."""
        groups = (self._load(group, [name]) for group in range(len(self._starts) - 1))
        return [value for table in groups for value in table.column(name).to_pylist()]

    def has_column(self, name: str) -> bool:
        """Returns whether the rows have a column of that name."""
        return len(self) > 0 and name in self._group(0).column_names

    def _group(self, number: int) -> Any:
        if number not in self._loaded:
            self._loaded[number] = self._load(number, None)
            if len(self._loaded) > _GROUPS_IN_MEMORY:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(number)
        return self._loaded[number]

    def _sample(self, row: Mapping[str, Any], number: int) -> Sample:
        return Sample.from_row(row, f"{self.path}: row {number + 1}")


def open_dataset(path: Path, *, verify: bool = True) -> Dataset:
    """Returns the rows of a dataset folder, or of a hand-written JSON lines or Parquet file of such rows.

    Of a folder, only the rows that are asked for are read; a hand-written file is checked whole and kept in
    memory as Arrow tables, about the size of its text.

    Args:
        path: The folder or file.
        verify: Compare the hash of a folder's rows with its manifest.

    Raises:
        DataError: The dataset is missing, was changed after it was written, or a row is wrong.
    """
    if path.is_file():
        return _open_file(path)
    recover_folder(path)
    if not path.exists():
        source, _, mode = path.name.rpartition("-")
        command = f"misotune prepare {source} --mode {mode}" if source else "misotune prepare SOURCE"
        raise DataError(f"{path}: no such dataset; write it: {command}")
    for tries_left in reversed(range(_NUM_TRIES)):
        manifest = read_manifest(path)
        try:
            return _open_folder(path, manifest, verify=verify)
        except DataError:
            # A new dataset may have taken the place between the reading of manifest and rows.
            if not tries_left or read_manifest(path) == manifest:
                raise
    raise AssertionError("the last try returns or raises")


def read_dataset(path: Path) -> list[Sample]:
    """Returns all samples of a dataset at once; see `open_dataset`, which does not hold them in memory.

    Raises:
        DataError: The dataset is missing, was changed after it was written, or a row is wrong.
    """
    return list(open_dataset(path))


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of a dataset folder.

    Raises:
        DataError: There is none, or it is of another format.
    """
    recover_folder(path)
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


def _open_folder(path: Path, manifest: Mapping[str, Any], *, verify: bool) -> Dataset:
    import pyarrow
    import pyarrow.parquet

    data = path / DATA_FILE
    try:
        # Opened once: what is verified is what is read, also when the folder is replaced meanwhile.
        opened = pyarrow.OSFile(str(data))
        if verify and _sha256_of_opened(opened) != manifest.get("data_sha256"):
            raise DataError(f"{data}: differs from its {MANIFEST_FILE} (data_sha256); prepare the dataset again")
        file = pyarrow.parquet.ParquetFile(opened)
    except FileNotFoundError as error:
        raise DataError(f"{data}: no such file; prepare the dataset again") from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{data}: cannot be read ({reason}); prepare the dataset again") from error

    def load(group: int, columns: Sequence[str] | None) -> Any:
        return file.read_row_group(group, columns=columns, use_threads=False)

    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return Dataset(path, manifest, str(manifest.get("data_sha256")), sizes, load)


def _sha256_of_opened(file: Any) -> str:
    import hashlib

    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


def _open_file(path: Path) -> Dataset:
    tables: list[Any] = []
    samples: list[Sample] = []
    for row in read_rows(path):
        if isinstance(row, BrokenRow):
            raise DataError(f"{row.where}: {row.reason}")
        samples.append(Sample.from_row(row.values, row.where))
        if len(samples) == ROW_GROUP_ROWS:
            tables.append(table_of(samples))
            samples.clear()
    if samples:
        tables.append(table_of(samples))

    def load(group: int, columns: Sequence[str] | None) -> Any:
        return tables[group] if columns is None else tables[group].select(columns)

    return Dataset(path, {}, sha256_of(path), [table.num_rows for table in tables], load)
