"""The picture of a needle test."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from misotune.evaluation.context.needle import recall_of
from misotune.evaluation.task import Sample, mean

# Text stays text in an SVG, and the same numbers give the same file.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "misotune",
    # Names of models are not formulas, whatever dollars they hold.
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
}
# Made to look the same to readers with any colour vision; on grey paper too, more is lighter.
_COLORS = "cividis"
_MISSING_COLOR = "white"
_MAX_NAME = 64
# Recalls are written into the cells as long as there is room for them.
_MAX_WRITTEN = 13


def heat_map(samples: Sequence[Sample], model: str, paths: Sequence[Path]) -> None:
    """Draws the recall by length and depth of the document, and writes it to files.

    Args:
        samples: Those of a needle task; a length and depth without one stays white.
        model: Its name, for the title.
        paths: Where to; the suffix (`.svg`, `.png`) is the format.
    """
    recalls = {(s.found["depth"], s.found["length"]): 100 * recall_of(s) for s in samples}
    depths = sorted({depth for depth, _ in recalls})
    lengths = sorted({length for _, length in recalls})
    grid = [[recalls.get((depth, length), math.nan) for length in lengths] for depth in depths]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.6 + 0.42 * max(8, len(lengths)), 1.9 + 0.27 * max(8, len(depths))))
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        axes.set_facecolor(_MISSING_COLOR)
        image = axes.imshow(grid, cmap=_COLORS, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        axes.set_title(f"Needle in a haystack, mean recall {mean(list(recalls.values())):.1f} %\n{_end_of(model)}")
        axes.set_xticks(range(len(lengths)), labels=[str(length) for length in lengths], rotation=45, ha="right")
        axes.set_yticks(range(len(depths)), labels=[str(depth) for depth in depths])
        axes.set_xlabel("document's length in tokens of the model")
        axes.set_ylabel("needle's depth in percent")
        axes.spines[:].set_visible(False)
        # White lines tell cells of one colour apart.
        axes.set_xticks([at + 0.5 for at in range(len(lengths) - 1)], minor=True)
        axes.set_yticks([at + 0.5 for at in range(len(depths) - 1)], minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
        if max(len(lengths), len(depths)) <= _MAX_WRITTEN:
            for row, values in enumerate(grid):
                for column, value in enumerate(values):
                    if not math.isnan(value):
                        color = "black" if value > 50 else "white"
                        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)
        figure.colorbar(image, ax=axes, label="recall of the keywords in percent")
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _end_of(name: str) -> str:
    """Returns a path's end where the whole is too long for a title."""
    return name if len(name) <= _MAX_NAME else f"\u2026{name[1 - _MAX_NAME :]}"
