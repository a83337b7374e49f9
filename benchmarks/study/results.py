"""The result file: one JSON line for each piece, and what is read out of it."""

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

# What decides a rate: the share of constraints that the responses to the validation prompts meet, strictly.
RATE_FIGURE = "inst_level_strict_acc"


class ResultFile:
    """Records of pieces that are done; appended by one thread at a time, each line at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = read_results([path])
        self._lock = threading.Lock()

    def find(self, piece: str, study: str) -> list[Record]:
        """Returns the records of a piece of this very study; none: it has not been done."""
        return [record for record in self.records if (record["piece"], record["study"]) == (piece, study)]

    def append(self, record: Record) -> None:
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            with self.path.open("a", encoding="utf-8") as file:
                # A kill may have cut the last line short: this one begins anew.
                file.write(line if not text or text.endswith("\n") else f"\n{line}")
            self.records.append(record)


def read_results(paths: Iterable[Path]) -> list[Record]:
    """Returns the records of result files; a line that was cut short by a kill is left out."""
    records: list[Record] = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"{path}:{number}: no whole record, left out")
    return records


def choose_rate(records: Iterable[Record], model: str, variant: str, rates: Sequence[float]) -> float:
    """Returns the rate with the highest validation accuracy, of equal ones the smallest.

    Args:
        records: Of kind `rate`, each with its `validation`.
        model: Of this model and
        variant: this variant only.
        rates: Which must all be there.

    Raises:
        KeyError: One of them is not: the best of some is not the best.
    """
    accuracies = {
        record["learning_rate"]: record["scores"]["validation"]["figures"][RATE_FIGURE]
        for record in records
        if (record["kind"], record["model"], record["variant"]) == ("rate", model, variant)
    }
    return min(rates, key=lambda rate: (-accuracies[rate], rate))
