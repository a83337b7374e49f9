"""The result folder of an analysis: NAME.json, what else the analysis writes, and index.html with all of it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from misotune.storage import check_own_folder, whole_folder


def check_result_folder(folder: Path, name: str) -> None:
    """Makes sure that a result may be written to `folder`: an older result is replaced, nothing else is.

    Args:
        folder: The result folder.
        name: Of the analysis: `attention`, `dependency` or `dilution`.

    Raises:
        UsageError: `folder` is a file, or a folder that holds something else.
    """
    check_own_folder(folder, f"{name}.json", f"result of inspect {name}")


@contextmanager
def whole_result(folder: Path, name: str, result: Mapping[str, Any]) -> Iterator[Path]:
    """Gives a folder with NAME.json to write the rest into, which takes its place last and whole.

    Args:
        folder: Its place.
        name: Of the analysis.
        result: The content of NAME.json.

    Raises:
        UsageError: `folder` holds something else than an older result.
        RunError: The folder cannot be written.
    """
    check_result_folder(folder, name)
    with whole_folder(folder, "result") as partial:
        text = json.dumps(result, indent=2, ensure_ascii=False)
        (partial / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        yield partial
