"""The result folder: `scores.json`, and `samples.jsonl` with one line a prompt."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from misotune.evaluation.scores import Scores
from misotune.evaluation.task import Sample
from misotune.storage import check_own_folder, whole_folder

SCORES_FILE = "scores.json"
SAMPLES_FILE = "samples.jsonl"


def check_result_folder(folder: Path) -> None:
    """Makes sure that a result may be written to `folder`: an older result is replaced, nothing else is.

    Raises:
        UsageError: `folder` is a file, or a folder that holds something else.
    """
    check_own_folder(folder, SCORES_FILE, "result of eval")


def write_result(
    folder: Path, scores: Scores, samples: Sequence[Sample], add: Callable[[Path], None] | None = None
) -> None:
    """Writes a result folder, beside its place first and renamed last, so that it is whole when it is there.

    Args:
        folder: Where to.
        scores: The content of scores.json.
        samples: The lines of samples.jsonl.
        add: Writes further files into the folder that it is given.

    Raises:
        UsageError: `folder` holds something else than an older result.
        RunError: The folder cannot be written.
    """
    check_result_folder(folder)
    with whole_folder(folder, "result") as partial:
        with (partial / SAMPLES_FILE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(sample.to_row(), ensure_ascii=False) + "\n" for sample in samples)
        text = json.dumps(scores.to_json(), indent=2, ensure_ascii=False)
        (partial / SCORES_FILE).write_text(text + "\n", encoding="utf-8")
        if add is not None:
            add(partial)
