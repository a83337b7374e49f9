"""A task's rows from local files, for machines without the hub: what `--data` changes in a task's description."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import DataError, UsageError
from misotune.evaluation.constrained import read_jsonl

_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
# Published in one file, where the hub's copy is in splits: the rows of the split that is scored, by a column's range.
_PUBLISHED_WHOLE = {"google-research-datasets/mbpp": ("task_id", 11, 510)}
_SCORED, _EXAMPLES = "test", "train"


@dataclass(frozen=True, slots=True)
class LocalRows:
    """What takes the place of a task's data set.

    Attributes:
        changes: Fields of the task's description, with their new values.
        notes: What a reader of the scores must know.
    """

    changes: Mapping[str, Any]
    notes: tuple[str, ...]


def local_rows(name: str, config: Mapping[str, Any], path: Path, num_fewshot: int | None) -> LocalRows:
    """Returns what makes a task read its rows from a file, or from a folder with a file for each split.

    A file holds the rows that are scored. Examples in front of a question come from the same file then, without the
    row that is asked; lm-eval leaves that row out where both are of one split, so that they are made one.

    Args:
        name: The task's.
        config: What the task's file says.
        path: The file or folder.
        num_fewshot: As the user wants it; None for the task's own number.

    Raises:
        UsageError: `path` has no file for a split that is needed, or examples cannot be kept apart.
        DataError: A row cannot be read; names file and line.
    """
    shots = config.get("num_fewshot") if num_fewshot is None or config.get("num_fewshot") == 0 else num_fewshot
    fewshot = dict(config.get("fewshot_config") or {})
    has_own_examples = fewshot.get("samples") is not None and fewshot.get("split") is None
    draws_examples = bool(shots) and not has_own_examples
    scored = config.get("test_split") or config.get("validation_split") or _SCORED
    examples = fewshot.get("split") or config.get("fewshot_split") or config.get("training_split") or _EXAMPLES
    notes: list[str] = []
    changes: dict[str, Any] = {
        "dataset_path": None, "dataset_name": None, "dataset_kwargs": None,
        "training_split": None, "validation_split": None, "test_split": _SCORED, "fewshot_split": None,
    }  # fmt: skip
    files = {_SCORED: _file_of(path, scored, name) if path.is_dir() else path}
    if draws_examples and path.is_dir() and examples != scored:
        files[_EXAMPLES] = _file_of(path, examples, name)
        changes["fewshot_split"] = _EXAMPLES
    elif draws_examples:
        if fewshot.get("process_docs") is not None:
            raise UsageError(
                f"task {name!r} prepares its {shots} examples otherwise than its questions, so that a question could "
                f"be among its own examples: give --data a folder with {scored}.jsonl and {examples}.jsonl, or "
                "--num-fewshot 0"
            )
        changes["fewshot_split"] = _SCORED
        notes.append(
            f"the {shots} examples in front of each question come from {files[_SCORED]} too, never the question "
            f"itself; the task takes them from its split {examples!r}"
        )
    if "split" in fewshot:
        changes["fewshot_config"] = {**fewshot, "split": changes["fewshot_split"]}
    published = _PUBLISHED_WHOLE.get(str(config.get("dataset_path")))
    rows = {split: _read(file) for split, file in files.items()}
    if published is not None:
        kept = _within(rows[_SCORED], *published)
        if len(kept) < len(rows[_SCORED]):
            field, first, last = published
            notes.append(f"of {files[_SCORED]}, the task's split {scored!r}: {field} {first} to {last}")
        rows[_SCORED] = kept
    changes["custom_dataset"] = _as_dataset(rows, files)
    return LocalRows(changes, tuple(notes))


def _file_of(folder: Path, split: str, task: str) -> Path:
    names = [f"{stem}{ending}" for stem in (split, f"{task}_{split}") for ending in _ENDINGS]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"--data {folder}: task {task!r} needs its split {split!r}, in a file called {', '.join(names)}")


def _read(path: Path) -> list[dict[str, Any]]:
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return [row for _, row in read_jsonl(path)]
    import gzip

    try:
        data = path.read_bytes()
        rows = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must hold a list of rows, or be JSONL with one row a line")
    return rows


def _within(rows: Sequence[dict[str, Any]], field: str, first: int, last: int) -> list[dict[str, Any]]:
    return [row for row in rows if first <= row.get(field, first) <= last]


def _as_dataset(rows: Mapping[str, Sequence[dict[str, Any]]], files: Mapping[str, Path]) -> Callable[..., Any]:
    """Returns a function that lm-eval asks for the data set; what it is told of versions and the like has no say."""

    def dataset(**_: Any) -> Any:
        import datasets

        return datasets.DatasetDict({split: _table(part, files[split]) for split, part in rows.items()})

    return dataset


def _table(rows: Iterable[dict[str, Any]], path: Path) -> Any:
    import datasets
    import pyarrow

    rows = list(rows)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    try:
        return datasets.Dataset.from_list(rows)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: its rows do not have the same columns and types ({error})") from error
