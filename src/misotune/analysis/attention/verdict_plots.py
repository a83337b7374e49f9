"""The picture of one constraint's share by verdict, model by model (the MISO paper's figure 1b)."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from misotune.analysis.attention.plots import VERDICTS, short_name
from misotune.analysis.attention.summary import ModelShares
from misotune.analysis.attention.verdicts import MEASURES, Estimate, contrast
from misotune.report.figures import STYLE, save_figure

_WIDTH = 8.4
_MOST_BESIDE = 3
_LABELS = {"share": "share of attention (%)", "share per token": "share per token (%)"}
_HATCHES = {"met": "", "not met": "///"}
_DASHES = {"met": "-", "not met": "--"}
_SHOWN = [style for style in VERDICTS if style[0] is not None]


def draw_verdicts(models: Sequence[ModelShares], title: str, paths: Sequence[Path]) -> None:
    """Draws a constraint's share where it was met and where not: of each model, whole and per token, and by layer.

    Args:
        models: What was measured, on the same rows.
        title: Models, data and number of rows; a line.
        paths: Where to; the suffix (`.svg`, `.png`) is the format.
    """
    with matplotlib.rc_context(STYLE):
        num_lines = -(-len(models) // _MOST_BESIDE)
        top = 0.9 + 0.5 * len(models)
        figure = Figure(figsize=(_WIDTH, 1.7 + top + 2.3 * num_lines), layout="constrained")
        heading = "One constraint's share of the response's attention, by verdict on the response"
        most = max(sum(1 for _ in model.constraints()) for model in models)
        numbers = f"{most} constraints; bars and bands: standard error over rows"
        figure.suptitle("\n".join((heading, *wrap(f"{title}; {numbers}", 90, break_on_hyphens=False))), fontsize=10.5)
        strips = figure.subfigures(1 + num_lines, 1, height_ratios=[top, *[2.3] * num_lines], squeeze=False)[:, 0]
        first: Axes | None = None
        for column, measure in enumerate(MEASURES, start=1):
            axes = strips[0].add_subplot(1, 2, column, sharey=first)
            _draw_means(axes, models, measure)
            axes.tick_params(labelleft=first is None)
            first = first or axes
        assert first is not None
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        first = None
        beside = min(len(models), _MOST_BESIDE)
        for at, model in enumerate(models):
            strip = strips[1 + at // _MOST_BESIDE]
            axes = strip.add_subplot(1, beside, 1 + at % _MOST_BESIDE, sharey=first)
            _draw_layers(axes, model)
            if at % _MOST_BESIDE == 0:
                axes.set_ylabel(_LABELS["share"])
            first = first or axes
        assert first is not None
        first.set_ylim(0, None)
        save_figure(figure, paths)


def _draw_means(axes: Axes, models: Sequence[ModelShares], measure: str) -> None:
    height = 0.38
    found = [contrast(model, measure) for model in models]
    for i, (verdict, name, _, color) in enumerate(_SHOWN):
        estimates = [x.met if verdict else x.not_met for x in found]
        at = [row for row, estimate in enumerate(estimates) if estimate]
        there: list[Estimate] = [estimate for estimate in estimates if estimate]
        places = [row + (i - 0.5) * height for row in at]
        shares = [100 * x.value.item() for x in there]
        errors = [0.0 if x.error is None else 100 * x.error.item() for x in there]
        style: dict[str, Any] = {"color": color, "hatch": _HATCHES[name], "edgecolor": "white"}
        axes.barh(places, shares, height, xerr=errors, label=name, capsize=2, **style)
        for row, y, share, error in zip(at, places, shares, errors, strict=True):
            num = models[row].by_verdict(verdict).num_constraints
            label = f"{share:.3g} ({num})"
            axes.annotate(label, (share + error, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(models)), labels=[short_name(model.name) for model in models])
    axes.set_ylim(len(models) - 0.45, -0.55)
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    axes.set(xlabel=_LABELS[measure], title=f"{measure} (number of constraints)")


def _draw_layers(axes: Axes, model: ModelShares) -> None:
    found = contrast(model, "share", by_layer=True)
    layers = range(1, len(model.shares) + 1)
    for verdict, name, marker, color in _SHOWN:
        estimate = found.met if verdict else found.not_met
        if estimate is None:
            continue
        shares = 100 * estimate.value
        style: dict[str, Any] = {
            "color": color,
            "linestyle": _DASHES[name],
            "marker": marker,
            "markersize": 3,
            "linewidth": 1.3,
        }
        axes.plot(layers, shares, **style)
        if estimate.error is not None:
            error = 100 * estimate.error
            axes.fill_between(layers, shares - error, shares + error, color=color, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid()
    axes.set(xlabel="layer", title=f"{short_name(model.name)}: by layer")
