"""The dataset with its context-dependent user turns marked: scores of `inspect dependency` -> ` [IND]`.

arXiv 2411.02688, section 3.2. A turn is marked where the score of the response to it is above the threshold. All
inputs of a row end with the turn that the output answers, so it is marked in each of them: whichever inputs and mode
training takes, the indicator is there. Mode succ cuts one input: its last chunk has the indicator.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from misotune.data.card import dataset_card
from misotune.data.dataset import DATA_FILE, MANIFEST_FILE, Dataset, open_dataset
from misotune.data.dataset_writer import FORMAT, ROW_GROUP_ROWS, table_of
from misotune.data.files import BrokenRow, read_rows
from misotune.errors import DataError, UsageError
from misotune.indicator import INDICATOR, has_indicator, mark_turn
from misotune.packages import installed_version
from misotune.samples import Sample
from misotune.storage import check_own_folder, sha256_of, whole_folder

THRESHOLD = 0.6
COLUMN = "dependency"
TURNS_COLUMN = "dependency_by_turn"
_CARD = "README.md"
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)

TurnScores = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Marked:
    """What was marked.

    Attributes:
        out: The dataset's folder.
        threshold: Turns are marked whose response's score is above it.
        num_rows: Rows.
        num_turns: User turns that a trained response follows.
        num_scored: Those whose response has a score; the others are never marked.
        num_marked: Turns marked.
        num_marked_rows: Rows with a marked turn.
        quantiles: Of the scores, by share.
        mode: What the dataset was prepared for.
    """

    out: Path
    threshold: float
    num_rows: int
    num_turns: int
    num_scored: int
    num_marked: int
    num_marked_rows: int
    quantiles: Mapping[float, float]
    mode: str

    @property
    def share(self) -> float:
        """Marked turns, of all."""
        return self.num_marked / self.num_turns

    def to_json(self) -> dict[str, Any]:
        """Returns what was marked as JSON has it."""
        return {
            "out": str(self.out),
            "token": INDICATOR,
            "threshold": self.threshold,
            "rows": self.num_rows,
            "turns": self.num_turns,
            "scored": self.num_scored,
            "marked": self.num_marked,
            "marked_rows": self.num_marked_rows,
            "share": round(self.share, 6),
            "quantiles": {f"{share:g}": round(score, 6) for share, score in self.quantiles.items()},
        }


def marked_with(dataset: Dataset) -> str | None:
    """Returns the token that marks a dataset's turns; None: they are not marked.

    A folder's manifest says so; a hand-written file, which may be joined of several, has a marked turn.
    """
    if dataset.manifest:
        found = dataset.manifest.get("indicator")
        return found["token"] if found and found["marked"] else None
    return INDICATOR if any(_is_marked(sample) for sample in dataset) else None


def mark_dataset(data: Path, out: Path, threshold: float = THRESHOLD) -> Marked:
    """Writes the dataset with its context-dependent turns marked, whole or not at all.

    Args:
        data: A dataset folder, or a JSON lines file of rows, with the columns of `inspect dependency --write`.
        out: The folder to write.
        threshold: Turns are marked whose response's score is above it, from 0 to 1.

    Raises:
        UsageError: The threshold is none, or `out` holds something else.
        DataError: The dataset cannot be read, has no scores, or is marked already.
        RunError: It cannot be written.
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold:g}: must be from 0 to 1")
    check_own_folder(out, MANIFEST_FILE, "dataset")
    dataset = open_dataset(data)
    scores = _scores_of(dataset)
    if marked_with(dataset) is not None:
        raise DataError(f"{data}: its turns are marked already; mark the dataset that it was made of")
    counts = _Counts(threshold)
    with whole_folder(out, "dataset") as partial:
        if data.is_dir():
            _copy_others(data, partial)
        _write_rows(dataset, scores, partial / DATA_FILE, counts)
        marked = counts.to_marked(out, _mode_of(dataset))
        manifest = _manifest(dataset, marked, sha256_of(partial / DATA_FILE))
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (partial / MANIFEST_FILE).write_text(text, encoding="utf-8")
        (partial / _CARD).write_text(dataset_card(out.name, manifest), encoding="utf-8")
    return marked


class _Counts:
    """Marks rows, and counts."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._scores: list[float] = []
        self._num_rows = self._num_turns = self._num_marked = self._num_marked_rows = 0

    def mark(self, sample: Sample, scores: TurnScores | None) -> Sample:
        """Returns a row with its turns above the threshold marked."""
        self._num_rows += 1
        answers = _answers(sample)
        scores = scores or [None] * len(answers)
        if len(scores) != len(answers):
            raise DataError(
                f"row {sample.id}: {len(scores)} scores in {TURNS_COLUMN}, and {len(answers)} trained responses; score "
                "the dataset again"
            )
        self._num_turns += len(answers)
        known = [score for score in scores if score is not None]
        self._scores += known
        # Two responses may follow one turn.
        turns = {
            turn for turn, score in zip(answers, scores, strict=True) if score is not None and score > self._threshold
        }
        self._num_marked += len(turns)
        self._num_marked_rows += bool(turns)
        return _with_marks(sample, turns)

    def to_marked(self, out: Path, mode: str) -> Marked:
        """Returns the counts."""
        ranked = sorted(self._scores)
        return Marked(
            out=out,
            threshold=self._threshold,
            num_rows=self._num_rows,
            num_turns=self._num_turns,
            num_scored=len(ranked),
            num_marked=self._num_marked,
            num_marked_rows=self._num_marked_rows,
            quantiles={share: ranked[round(share * (len(ranked) - 1))] for share in _QUANTILES} if ranked else {},
            mode=mode,
        )


def _answers(sample: Sample) -> list[int]:
    """Returns the user turn before each trained response, by its place from the end of an input's messages."""
    messages = sample.inputs[0].messages
    length = len(messages)
    ends = [length]
    if sample.history_loss:
        ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"] + ends
    return [_last_user(messages, end) - length for end in ends]


def _last_user(messages: Sequence[Mapping[str, str]], end: int) -> int:
    # A conversation that the assistant opens: there is no turn to mark, and the response has no score either.
    return next((i for i in range(end - 1, -1, -1) if messages[i]["role"] == "user"), len(messages) - 1)


def _with_marks(sample: Sample, turns: set[int]) -> Sample:
    inputs = list(sample.inputs)
    for turn in turns:
        inputs = [replace(entry, messages=tuple(mark_turn(entry.messages, turn))) for entry in inputs]
    return replace(sample, inputs=tuple(inputs))


def _is_marked(sample: Sample) -> bool:
    messages = (message for entry in sample.inputs for message in entry.messages)
    return any(message["role"] == "user" and has_indicator(message["content"]) for message in messages)


def _scores_of(dataset: Dataset) -> list[TurnScores | None]:
    """Returns the scores of each row's responses; None: none of them was scored."""
    path = dataset.path
    found: list[Any] | None = None
    if path.is_dir():
        found = dataset.column(TURNS_COLUMN) if dataset.has_column(TURNS_COLUMN) else None
    else:
        rows = [row.values for row in read_rows(path) if not isinstance(row, BrokenRow)]
        found = [row.get(TURNS_COLUMN) for row in rows] if any(TURNS_COLUMN in row for row in rows) else None
    if found is None:
        raise DataError(
            f"{path}: no column {TURNS_COLUMN!r} with scores; make them: "
            f"misotune inspect dependency MODEL {path} --write SCORED"
        )
    return found


def _copy_others(data: Path, partial: Path) -> None:
    for path in data.iterdir():
        if path.name not in (DATA_FILE, MANIFEST_FILE, _CARD):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, partial / path.name)


def _write_rows(dataset: Dataset, scores: Sequence[TurnScores | None], target: Path, counts: _Counts) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    added = [pa.field(COLUMN, pa.float32()), pa.field(TURNS_COLUMN, pa.list_(pa.float32()))]
    schema = pa.schema([*table_of([]).schema, *added])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for samples, of_turns in _groups(dataset, scores):
            table = table_of([counts.mark(*pair) for pair in zip(samples, of_turns, strict=True)])
            for field, values in zip(added, ([*map(_mean, of_turns)], list(of_turns)), strict=True):
                table = table.append_column(field, pa.array(values, field.type))
            writer.write_table(table)


def _groups(
    dataset: Dataset, scores: Sequence[TurnScores | None]
) -> Iterator[tuple[list[Sample], Sequence[TurnScores | None]]]:
    for start in range(0, len(dataset), ROW_GROUP_ROWS):
        yield dataset[start : start + ROW_GROUP_ROWS], scores[start : start + ROW_GROUP_ROWS]


def _mean(scores: TurnScores | None) -> float | None:
    known = [score for score in scores or [] if score is not None]
    return sum(known) / len(known) if known else None


def _mode_of(dataset: Dataset) -> str:
    """Returns what a dataset was prepared for; of a hand-written file, what its first row looks like."""
    if dataset.manifest:
        return str(dataset.manifest.get("mode"))
    first = dataset[0]
    return "succ" if first.inputs[0].role == "chunked" else "para" if len(first.inputs) > 1 else "sft"


def _manifest(dataset: Dataset, marked: Marked, data_sha256: str) -> dict[str, Any]:
    manifest = dict(dataset.manifest) or {
        "format": FORMAT,
        "misotune": installed_version("misotune") or "unknown",
        "source": {"name": dataset.path.name, "path": str(dataset.path), "sha256": dataset.sha256},
        "mode": marked.mode,
        "settings": {},
        "account": {"read": marked.num_rows, "kept": marked.num_rows, "one_input": {}, "dropped": {}},
        "rows": marked.num_rows,
    }
    found = marked.to_json()
    del found["out"]
    source = {"dataset": str(dataset.path), "data_sha256": dataset.sha256, "scores": manifest.get(COLUMN)}
    return {**manifest, "indicator": {**found, **source}, "data_sha256": data_sha256}
