"""The folder of a comparison.

FOLDER/
    comparison.json     every difference with interval, p value and verdict; wins and losses by key
    comparison.html     all of it on one page, with the texts of wins and losses
    forest.svg, .png    differences with their intervals
    bars.svg, .png      figures by type
"""

import json
from pathlib import Path

from misotune.evaluation.comparison.compare import Comparison
from misotune.evaluation.comparison.page import render_page
from misotune.storage import check_own_folder, whole_folder

COMPARISON_FILE = "comparison.json"
PAGE_FILE = "comparison.html"


def check_comparison_folder(folder: Path) -> None:
    """Makes sure that a comparison may be written to `folder`: an older one is replaced, nothing else is.

    Raises:
        UsageError: `folder` is a file, or a folder that holds something else.
    """
    check_own_folder(folder, COMPARISON_FILE, "comparison")


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Writes the folder, beside its place first and renamed last, and returns the page in it.

    Raises:
        UsageError: `folder` holds something else than an older comparison.
        RunError: The folder cannot be written.
    """
    # matplotlib takes half a second, which the terminal's table need not wait for.
    from misotune.evaluation.comparison.plots import draw_bars, draw_forest

    check_comparison_folder(folder)
    with whole_folder(folder, "comparison") as partial:
        text = json.dumps(comparison.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        (partial / COMPARISON_FILE).write_text(text + "\n", encoding="utf-8")
        draw_forest(comparison, [partial / "forest.svg", partial / "forest.png"])
        draw_bars(comparison, [partial / "bars.svg", partial / "bars.png"])
        pictures = {
            "differences to A with their intervals": (partial / "forest.svg").read_text(encoding="utf-8"),
            "figures of all results": (partial / "bars.svg").read_text(encoding="utf-8"),
        }
        page = render_page(comparison, pictures)
        (partial / PAGE_FILE).write_text(page, encoding="utf-8", errors="replace")
    return folder / PAGE_FILE
