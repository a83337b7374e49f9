"""The pictures of an analysis of context dependency."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from misotune.analysis.dependency.responses import NUM_BINS, Dependency, histogram, share_above
from misotune.report.figures import STYLE, save_figure

# Okabe and Ito's colours, which readers with any colour vision tell apart; hatching tells them once more.
_BELOW, _ABOVE, _LINE = "#56B4E9", "#D55E00", "#0072B2"


def draw_dependency(dependency: Dependency, title: str, paths: Sequence[Path]) -> None:
    """Draws the histogram of the scores, and where several layers were looked at, the scores by layer.

    Args:
        dependency: The scores.
        title: Model, data and number of rows; a line.
        paths: Where to; the suffix (`.svg`, `.png`) is the format.
    """
    has_layers = len(dependency.layers) > 1
    with matplotlib.rc_context({**STYLE, "axes.grid": True}):
        figure = Figure(figsize=(6.8, 6.0 if has_layers else 3.6), layout="constrained")
        figure.suptitle(f"Context dependency of responses\n{title}", fontsize=10.5)
        grid = figure.add_gridspec(2 if has_layers else 1, 1)
        _draw_histogram(figure.add_subplot(grid[0, 0]), dependency)
        if has_layers:
            _draw_layers(figure.add_subplot(grid[1, 0]), dependency)
        save_figure(figure, paths)


def layers_in_words(layers: Sequence[int]) -> str:
    """Returns which layers were looked at.

    >>> layers_in_words((20,)), layers_in_words((1, 2, 3)), layers_in_words((2, 8))
    ('layer 20', 'mean of layers 1 to 3', 'mean of layers 2, 8')
    """
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) == layers[-1] - layers[0] + 1:
        return f"mean of layers {layers[0]} to {layers[-1]}"
    return f"mean of layers {', '.join(map(str, layers))}"


def _draw_histogram(axes: Axes, dependency: Dependency) -> None:
    threshold = dependency.threshold
    parts = [[score for score in dependency.scores if (score > threshold) == is_above] for is_above in (False, True)]
    # A bin that holds the threshold is stacked of both.
    below, above = map(histogram, parts)
    lefts = [i / NUM_BINS for i in range(NUM_BINS)]
    bars: dict[str, Any] = {"width": 1 / NUM_BINS, "align": "edge", "edgecolor": "white", "linewidth": 0.6}
    share = f"{100 * dependency.share_above:.1f} %"
    axes.bar(lefts, below, color=_BELOW, label=f"up to {threshold:g}", **bars)
    axes.bar(lefts, above, bottom=below, color=_ABOVE, hatch="//", label=f"above {threshold:g}: {share}", **bars)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"dependency score, {layers_in_words(dependency.layers)}", ylabel="responses")
    axes.legend(frameon=False, loc="best")


def _draw_layers(axes: Axes, dependency: Dependency) -> None:
    found = [dependency.at_layer(i) for i in range(len(dependency.layers))]
    means = [fmean(scores) for scores in found]
    shares = [share_above(scores, dependency.threshold) for scores in found]
    axes.plot(dependency.layers, means, color=_LINE, marker="o", markersize=4, label="mean score")
    label = f"share of responses above {dependency.threshold:g}"
    axes.plot(dependency.layers, shares, color=_ABOVE, marker="s", markersize=4, linestyle="--", label=label)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(0, 1)
    axes.set(xlabel="layer", ylabel="score, share")
    axes.legend(frameon=False, loc="best")
