"""The result folder: `scores.json`, and `samples.jsonl` with one line a prompt."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from misotune.errors import RunError, UsageError
from misotune.evaluation.scores import Scores
from misotune.evaluation.task import Sample, Task
from misotune.storage import replace_folder

SCORES_FILE = "scores.json"
SAMPLES_FILE = "samples.jsonl"


def check_result_folder(folder: Path) -> None:
    """Makes sure that a result may be written to `folder`: an older result is replaced, nothing else is.

    Raises:
        UsageError: `folder` is a file, or a folder that holds something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; name a folder with --out")
    if any(folder.iterdir()) and not (folder / SCORES_FILE).is_file():
        raise UsageError(f"{folder}: holds files that are no result of eval; name another folder with --out")


def write_result(folder: Path, task: Task, scores: Scores, samples: Sequence[Sample]) -> None:
    """Writes a result folder, beside its place first and renamed last, so that it is whole when it is there.

    Raises:
        UsageError: `folder` holds something else than an older result.
        RunError: The folder cannot be written.
    """
    check_result_folder(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with (partial / SAMPLES_FILE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(sample.to_row(), ensure_ascii=False) + "\n" for sample in samples)
        text = json.dumps(scores.to_json(), indent=2, ensure_ascii=False)
        (partial / SCORES_FILE).write_text(text + "\n", encoding="utf-8")
        if task.draw is not None:
            task.draw(samples, scores.model, partial)
        replace_folder(partial, folder)
    except OSError as error:
        raise RunError(f"{folder}: the result cannot be written: {error.strerror or error}") from error
