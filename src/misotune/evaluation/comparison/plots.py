"""The pictures of a comparison: a forest plot of differences, and bars by type."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from misotune.evaluation.comparison.compare import Comparison
from misotune.evaluation.comparison.difference import Difference
from misotune.evaluation.comparison.words import lettered_names
from misotune.report.figure_names import figure_name
from misotune.report.figures import STYLE, save_figure

# Okabe and Ito's colours, which readers with any colour vision tell apart, for the results behind the first, which is
# grey; markers and hatches tell them once more.
_BASELINE_COLOR = "#8c8c8c"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "oD^svP"
_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "++")
_WIDTH = 8.2
_LINE_HEIGHT = 0.24  # inches, of one line of text
_MARGINS = 1.3  # inches, of title and axis

# A line of a picture: which figure of which prompts.
_Place = tuple[str, str]
_Lines = Mapping[_Place, Difference]


def draw_forest(comparison: Comparison, paths: Sequence[Path]) -> None:
    """Draws the difference of each figure with its interval, overall and by type, and writes it to files.

    Args:
        comparison: What was found.
        paths: Where to; the suffix (`.svg`, `.png`) is the format.
    """
    kind = comparison.pictured_kind
    found = [_lines([*pair.overall, *pair.main_lines(kind)]) for pair in comparison.pairs]
    merged = _merge(found)
    names = lettered_names(comparison.results)

    def draw(axes: Axes) -> None:
        for at, lines in enumerate(found):
            for row, place in enumerate(merged):
                if place in lines:
                    _draw_interval(axes, _offset(row, at, len(found)), lines[place], at, "" if row else names[at + 1])
        num_overall = len(comparison.pairs[0].overall)
        if num_overall < len(merged):
            axes.axhline(num_overall - 0.5, color="#8c8c8c", linewidth=0.8, linestyle=":")
        axes.axvline(0, color="#404040", linewidth=0.9)
        axes.set_xlabel("difference to A in percentage points, with its 95 % interval\n(hollow: within the noise)")
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, -1), max(high, 1))

    title = f"Differences to {names[0]}"
    _save(comparison, title, draw, merged, max(1.0, 0.6 * len(found)), paths)


def draw_bars(comparison: Comparison, paths: Sequence[Path]) -> None:
    """Draws the figures of every result by type, or overall where there are no types, and writes them to files.

    Args:
        comparison: What was found.
        paths: Where to; the suffix is the format.
    """
    kind = comparison.pictured_kind
    found = [_lines(pair.main_lines(kind) or pair.overall) for pair in comparison.pairs]
    merged = _merge(found)
    names = lettered_names(comparison.results)

    def draw(axes: Axes) -> None:
        for at, name in enumerate(names):
            lines = found[at - 1] if at else merged
            shown = [(row, lines[place]) for row, place in enumerate(merged) if place in lines]
            axes.barh(
                [_offset(row, at, len(names)) for row, _ in shown],
                [100 * (line.b if at else line.a) for _, line in shown],
                height=0.8 / len(names),
                color=_COLORS[(at - 1) % len(_COLORS)] if at else _BASELINE_COLOR,
                hatch=_HATCHES[(at - 1) % len(_HATCHES)] if at else "",
                edgecolor="white",
                linewidth=0.4,
                label=name,
            )
        axes.set_xlim(0, 100)
        metrics = {line.metric for line in merged.values()}
        axes.set_xlabel(f"{figure_name(metrics.pop())}, percent" if len(metrics) == 1 else "percent")

    _save(comparison, f"Figures by {kind}" if kind else "Figures", draw, merged, max(1.0, 0.6 * len(names)), paths)


def _lines(differences: Sequence[Difference]) -> dict[_Place, Difference]:
    return {(line.label, line.metric): line for line in differences}


def _merge(found: Sequence[_Lines]) -> dict[_Place, Difference]:
    """Returns every line that some pair has, of the first pair that has it."""
    merged: dict[_Place, Difference] = {}
    for lines in found:
        merged = {**merged, **{place: line for place, line in lines.items() if place not in merged}}
    return merged


def _offset(row: int, at: int, number: int) -> float:
    """Returns where the result number `at` of `number` stands, in the row's 0.8 lines."""
    return row + 0.8 * ((at + 0.5) / number - 0.5)


def _draw_interval(axes: Axes, y: float, line: Difference, at: int, name: str) -> None:
    color = _COLORS[at % len(_COLORS)]
    axes.plot([100 * line.low, 100 * line.high], [y, y], color=color, linewidth=1.5, solid_capstyle="butt")
    style: dict[str, Any] = {"marker": _MARKERS[at % len(_MARKERS)], "markersize": 5, "color": color}
    axes.plot([100 * line.difference], [y], **style, markerfacecolor=color if line.better else "white", linestyle="")
    if name:
        axes.plot([], [], **style, linewidth=1.5, label=name)


def _label(line: Difference) -> str:
    name = figure_name(line.metric) if line.label == "all" else line.label
    return f"{name} ({line.num_prompts if line.num_parts is None else line.num_parts:,})"


def _save(
    comparison: Comparison,
    title: str,
    draw: Callable[[Axes], None],
    rows: _Lines,
    row_height: float,
    paths: Sequence[Path],
) -> None:
    """Makes the figure, has it drawn on, and writes it; `row_height` is in lines of text."""
    num_results = len(comparison.results)
    height = _LINE_HEIGHT * (len(rows) * row_height + num_results) + _MARGINS
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.suptitle(f"{title}\n{comparison.task}, {_prompts(comparison)}", fontsize=10.5)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_yticks(range(len(rows)), labels=[_label(line) for line in rows.values()])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False)
        save_figure(figure, paths)


def _prompts(comparison: Comparison) -> str:
    numbers = sorted({pair.num_prompts for pair in comparison.pairs})
    return f"{' to '.join(f'{number:,}' for number in (numbers[0], *numbers[1:][-1:]))} prompts"
