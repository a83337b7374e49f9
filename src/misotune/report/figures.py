"""How matplotlib's pictures look, and how they become files; matplotlib itself is imported by those who draw."""

import re
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
_CLIP_ID = re.compile(r'(\bid="|url\(#)(p[0-9a-f]{10})(?=["\)])')


def save_figure(figure: Any, paths: Sequence[Path]) -> None:
    """Writes a figure of matplotlib's to files; the suffix (`.svg`, `.png`) is the format."""
    for path in paths:
        is_svg = path.suffix == ".svg"
        figure.savefig(path, dpi=150, metadata=_NO_METADATA if is_svg else None)
        if is_svg:
            path.write_text(_with_numbered_clips(path.read_text(encoding="utf-8")), encoding="utf-8")


def _with_numbered_clips(svg: str) -> str:
    """Gives clip paths numbers: matplotlib names them by a layout whose last digits differ from run to run."""
    names: dict[str, str] = {}
    return _CLIP_ID.sub(lambda match: match[1] + names.setdefault(match[2], f"clip{len(names) + 1}"), svg)
