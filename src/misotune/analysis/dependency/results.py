"""The result folder of an analysis of context dependency.

FOLDER/
    dependency.json         settings, summary, histogram, every response's score
    dependency.csv          the scores, one line for each response and layer
    dependency.svg, .png    the picture
    index.html              all of it on one page
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misotune.analysis.dependency.page import dependency_page
from misotune.analysis.dependency.plots import draw_dependency
from misotune.analysis.dependency.responses import Dependency
from misotune.analysis.page import write_page
from misotune.analysis.result_folder import whole_result

SCORES_FILE = "dependency.csv"
PICTURES = ("dependency.svg", "dependency.png")


def write_result(
    folder: Path, result: Mapping[str, Any], dependency: Dependency, title: str, command: str | None = None
) -> None:
    """Writes the folder, beside its place first and renamed last, so that it is whole when it is there.

    Args:
        folder: Where to.
        result: The content of dependency.json.
        dependency: The scores.
        title: The picture's second line.
        command: The command that gave the result, for the page; None: not known.

    Raises:
        UsageError: `folder` holds something else than an older result.
        RunError: The folder cannot be written.
    """
    with whole_result(folder, "dependency", result) as partial:
        _write_scores(partial / SCORES_FILE, dependency)
        draw_dependency(dependency, title, [partial / name for name in PICTURES])
        write_page(partial, dependency_page(dependency, title, partial / PICTURES[0]), result, command)


def _write_scores(path: Path, dependency: Dependency) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("row", "id", "turn", "layer", "score", "user_tokens", "response_tokens"))
        for found in dependency.responses:
            for layer, score in zip(dependency.layers, found.by_layer, strict=True):
                line = (found.row, found.id, found.turn, layer, f"{score:.6f}", found.num_user_tokens, found.num_tokens)
                writer.writerow(line)
