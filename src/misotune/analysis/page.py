"""An analysis on one self-contained HTML page: no script, no request to anywhere, light and dark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.analysis.table import Table
from misotune.report.html import PAGE_STYLE, PLOTS_STYLE, inline_svg, page_template
from misotune.report.words import facts

PAGE_FILE = "index.html"

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Page:
    """What the page of an analysis shows, beside what every result holds.

    Attributes:
        heading: What was measured.
        title: Models, data and number of rows.
        pictures: Files of matplotlib's, by what they show.
        tables: Shown at once.
        folded: Long tables, shown when they are opened.
        notes: What else to know when reading them; lines.
    """

    heading: str
    title: str
    pictures: Mapping[str, Path]
    tables: Sequence[Table]
    folded: Sequence[Table] = ()
    notes: Sequence[str] = ()


def write_page(folder: Path, page: Page, result: Mapping[str, Any], command: str | None) -> None:
    """Writes the page among the other files of a result; the same result gives the same page.

    Args:
        folder: The result's folder with all of its other files, which the page names.
        page: What it shows.
        result: The content of the result's JSON file: its settings and versions are shown.
        command: The command that gave the result; None: not known.
    """
    template, css = page_template(_HERE, PAGE_STYLE, PLOTS_STYLE)
    pictures = {
        label: inline_svg(path.read_text("utf-8"), f"p{i}") for i, (label, path) in enumerate(page.pictures.items())
    }
    html = template.render(
        page=page,
        css=css,
        pictures=pictures,
        settings=list(facts(result["settings"])),
        versions=list(facts(result["versions"])),
        files=sorted(path.name for path in folder.iterdir()),
        command=command,
    )
    (folder / PAGE_FILE).write_text(html, encoding="utf-8", errors="replace")
