"""How matplotlib's pictures look, and how they become files; matplotlib itself is imported by those who draw."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Text stays text in an SVG, and the same numbers give the same file; names of models are not formulas.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "misotune",
    "text.parse_math": False,
    "font.size": 9,
    "hatch.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
}
# A page takes the SVG in, and asks no other site what a "dc:type" is.
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def save_figure(figure: Any, paths: Sequence[Path]) -> None:
    """Writes a figure of matplotlib's to files; the suffix (`.svg`, `.png`) is the format."""
    for path in paths:
        figure.savefig(path, dpi=150, metadata=_NO_METADATA if path.suffix == ".svg" else None)
