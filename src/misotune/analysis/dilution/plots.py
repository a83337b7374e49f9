"""The pictures of an analysis: the one file that knows matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from misotune.analysis.dilution.shares import MEASURED, Dilution
from misotune.report.figures import STYLE, save_figure

# Okabe and Ito's colours, which readers with any colour vision tell apart; markers and dashes tell them once more.
_LINES: dict[str, dict[str, Any]] = {
    "vanilla": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "uniform": {"color": "#0072B2", "marker": "s", "linestyle": "--", "markersize": 8, "markerfacecolor": "white"},
    "fid": {"color": "#009E73", "marker": "^", "linestyle": ":", "markersize": 5},
}
_EQUATIONS = {"vanilla": "eq. 4", "uniform": "eq. 3", "fid": "eq. 7"}
_MEANS = "mean over layers, heads and output tokens; band: standard deviation over rows"
_NUM_INPUTS = "number of inputs n"
_SHARE = "share of attention (%)"


def draw_dilution(dilution: Dilution, title: str, paths: Sequence[Path]) -> None:
    """Draws the output's share of attention by number of inputs, and by layer, and writes it to files.

    Args:
        dilution: What was measured.
        title: Model, data and number of rows; a line.
        paths: Where to; the suffix (`.svg`, `.png`) is the format.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": True}):
        figure = Figure(figsize=(8.2, 6.4), layout="constrained")
        figure.suptitle(f"The output's share of attention\n{title}", fontsize=10.5)
        grid = figure.add_gridspec(2, 3, height_ratios=[1.15, 1])
        _draw_means(figure.add_subplot(grid[0, :]), dilution)
        first: Axes | None = None
        for column, name in enumerate(MEASURED):
            axes = figure.add_subplot(grid[1, column], sharey=first)
            _draw_layers(axes, dilution, name)
            if first is None:
                axes.set_ylabel(_SHARE)
                first = axes
            else:
                axes.tick_params(labelleft=False)
        assert first is not None
        first.set_ylim(0, 100)
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        save_figure(figure, paths)


def _draw_means(axes: Axes, dilution: Dilution) -> None:
    for name in MEASURED:
        mean, spread = 100 * dilution.mean(name), 100 * dilution.spread(name)
        axes.plot(dilution.counts, mean, label=f"{name} ({_EQUATIONS[name]})", **_LINES[name])
        axes.fill_between(
            dilution.counts, mean - spread, mean + spread, color=_LINES[name]["color"], alpha=0.15, linewidth=0
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(dilution.counts, labels=[str(n) for n in dilution.counts])
    axes.minorticks_off()
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.set(xlabel=_NUM_INPUTS, ylabel=_SHARE, title=_MEANS)
    axes.legend(frameon=False, loc="best")


def _draw_layers(axes: Axes, dilution: Dilution, name: str) -> None:
    colors = matplotlib.colormaps["viridis"]
    layers = range(1, dilution.num_layers + 1)
    by_layer = 100 * dilution.by_layer(name)
    for i, n in enumerate(dilution.counts):
        # The palest end of the map can hardly be seen on white.
        color = colors(0.88 * i / (len(dilution.counts) - 1))
        axes.plot(layers, by_layer[i], color=color, linewidth=1.2, label=f"n = {n}")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(1 - 0.5, dilution.num_layers + 0.5)
    axes.set(xlabel="layer", title=f"{name}, layer by layer")
