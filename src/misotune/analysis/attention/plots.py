"""The picture of an analysis of attention."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from misotune.analysis.attention.parts import CONSTRAINTS, INSTRUCTION, PARTS
from misotune.analysis.attention.summary import ModelShares
from misotune.report.figures import STYLE, save_figure

# Okabe and Ito's colours, which readers with any colour vision tell apart; dashes and hatches tell them once more.
_LINES: dict[str, dict[str, Any]] = {
    "first token": {"color": "#999999", "linestyle": (0, (1, 1))},
    "system": {"color": "#56B4E9", "linestyle": (0, (5, 1, 1, 1))},
    "instruction": {"color": "#0072B2", "linestyle": "--"},
    "constraints": {"color": "#D55E00", "linestyle": "-"},
    "rest": {"color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    "response": {"color": "#009E73", "linestyle": ":"},
}
VERDICTS = ((True, "met", "o", "#0072B2"), (False, "not met", "X", "#D55E00"), (None, "not verified", "s", "#999999"))
"""Verdict, name, marker and colour."""

_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++")
_SHARE = "share of attention (%)"
_WIDTH = 8.4
_MAX_NAME = 26


def draw_attention(models: Sequence[ModelShares], title: str, paths: Sequence[Path]) -> None:
    """Draws the parts' shares side by side, by verdict, and by layer and head, and writes the picture to files.

    Args:
        models: What was measured, on the same rows.
        title: Models, data and number of rows; a line.
        paths: Where to; the suffix (`.svg`, `.png`) is the format.
    """
    with matplotlib.rc_context(STYLE):
        has_constraints = any(model.has_constraints for model in models)
        # One model's two panels stand side by side; several need the width.
        tops = [1.15] if len(models) == 1 else [0.5 + 0.35 * len(models)] * (1 + has_constraints)
        heights = [*tops, *[1.0] * len(models)]
        figure = Figure(figsize=(_WIDTH, 1.2 + 2.5 * sum(heights)), layout="constrained")
        figure.suptitle(
            "\n".join(("Where the response's attention goes", *wrap(title, 90, break_on_hyphens=False))), fontsize=10.5
        )
        # Strips of their own: long labels in one do not narrow the others.
        strips = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        is_beside = len(tops) == 1 and has_constraints
        _draw_means(strips[0].add_subplot(1, 1 + is_beside, 1), models)
        if has_constraints:
            _draw_verdicts(strips[0].add_subplot(1, 2, 2) if is_beside else strips[1].add_subplot(), models)
        heated = CONSTRAINTS if has_constraints else INSTRUCTION
        most = 100 * max(model.shares[..., heated].max().item() for model in models)
        layers: list[Axes] = []
        for strip, model in zip(strips[len(tops) :], models, strict=True):
            layers.append(strip.add_subplot(1, 2, 1, sharey=layers[0] if layers else None))
            _draw_layers(layers[-1], model)
            _draw_heads(strip, strip.add_subplot(1, 2, 2), model, heated, most)
        lines = layers[0]
        lines.set_ylim(0, None)
        strips[-1].legend(
            *lines.get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS), frameon=False
        )
        save_figure(figure, paths)


def _draw_means(axes: Axes, models: Sequence[ModelShares]) -> None:
    height = 0.8 / len(models)
    at = np.arange(len(PARTS))
    for i, model in enumerate(models):
        place = at + (i - (len(models) - 1) / 2) * height
        mean, spread = ([100 * x[part] for part in PARTS] for x in (model.mean, model.spread))
        hatch = _HATCHES[i % len(_HATCHES)]
        colors = [_LINES[part]["color"] for part in PARTS]
        bars = axes.barh(place, mean, height, xerr=spread, color=colors, edgecolor="white", hatch=hatch)
        bars.set_label(short_name(model.name))
        for y, share, deviation in zip(place, mean, spread, strict=True):
            axes.annotate(f"{share:.1f}", (share + deviation, y), (3, 0), textcoords="offset points", va="center")
    axes.set_yticks(at, labels=PARTS)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.grid(axis="x")
    axes.set(xlabel=_SHARE, title="mean over layers, heads and rows; bar: deviation over rows")
    axes.title.set_fontsize(8.5)
    if len(models) > 1:
        legend = axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3)
        for patch in legend.get_patches():
            patch.set_facecolor("#777777")


def _draw_verdicts(axes: Axes, models: Sequence[ModelShares]) -> None:
    """Each constraint as a mark, their mean as a line."""
    labels: list[str] = []
    for model in models:
        for verdict, name, marker, color in VERDICTS:
            shares = [100 * x.share for _, x in model.constraints() if x.is_met is verdict]
            if not shares:
                continue
            y = len(labels)
            # Spread evenly, so that marks of like shares are told apart and the picture is the same again.
            places = y + np.linspace(-0.25, 0.25, len(shares)) if len(shares) > 1 else [y]
            axes.scatter(shares, places, s=16, marker=marker, color=color, alpha=0.75, linewidths=0)
            axes.plot([np.mean(shares)] * 2, [y - 0.38, y + 0.38], color="black", linewidth=1.6)
            whose = f"{short_name(model.name)}: " if len(models) > 1 else ""
            labels.append(f"{whose}{name} ({len(shares)})")
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    axes.set(xlabel=_SHARE, title="each constraint's share, by verdict; line: mean")
    axes.title.set_fontsize(8.5)


def _draw_layers(axes: Axes, model: ModelShares) -> None:
    layers = range(1, len(model.shares) + 1)
    for part, shares in zip(PARTS, model.shares.mean(dim=1).T.tolist(), strict=True):
        axes.plot(layers, [100 * x for x in shares], label=part, linewidth=1.5, **_LINES[part])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid()
    axes.set(xlabel="layer", ylabel=_SHARE, title=f"{short_name(model.name)}: by layer")


def _draw_heads(figure: SubFigure, axes: Axes, model: ModelShares, part: int, most: float) -> None:
    shares = 100 * model.shares[..., part].T.numpy()
    num_heads, num_layers = shares.shape
    extent = (0.5, num_layers + 0.5, num_heads + 0.5, 0.5)
    image = axes.imshow(shares, cmap="cividis", aspect="auto", vmin=0, vmax=most, extent=extent, interpolation="none")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="layer", ylabel="head", title=f"{short_name(model.name)}: {PARTS[part]}, by layer and head")
    figure.colorbar(image, ax=axes, label="%")


def short_name(name: str) -> str:
    """The end of a long name: there a run's and a tuned model's names differ."""
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"
