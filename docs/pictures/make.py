"""Draws the pictures of the method and attention pages from the code itself: `python docs/pictures/make.py`."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from misotune.attention.plan import RowPlan, plan_row
from misotune.data.records import Record, to_samples
from misotune.layout import RowLayout

FOLDER = Path(__file__).parent
# Okabe and Ito's colours, told apart by colour-blind readers.
INPUTS, PAIRS, OUTPUT, PLAIN, NOTHING = "#56B4E9", "#E69F00", "#009E73", "#BBBBBB", "#FFFFFF"
LENGTHS = [([5, 3, 4], 4)]
RECORD = Record(
    id="1",
    source="picture",
    domain="",
    history=(),
    instruction="Praise the sea.",
    constraints=("Two lines.", "No rhyme."),
    output="It is blue. It is deep.",
)


def products(plan: RowPlan, num_tokens: int, output_start: int) -> np.ndarray:
    """Returns which call computes each query-key product: 0 none, 1 an input, 2 the pairs, 3 the output itself."""
    grid = np.zeros((num_tokens, num_tokens), dtype=int)
    for block in plan.segments.items:
        for query in range(*block.queries):
            grid[query, block.keys.start : query + 1] = 3 if block.queries.start >= output_start else 1
    for block in plan.pairs.items:
        grid[slice(*block.queries), slice(*block.keys)] = 2
    return grid


def draw_grid(axes: Any, grid: np.ndarray, bounds: list[int], names: list[str], title: str) -> None:
    """Draws which call computes each product."""
    axes.imshow(grid, cmap=ListedColormap([NOTHING, INPUTS, PAIRS, OUTPUT, PLAIN]), vmin=0, vmax=4)
    size = len(grid)
    for edge in range(size + 1):
        is_bound = edge in bounds
        for line in (axes.axhline, axes.axvline):
            line(edge - 0.5, color="black" if is_bound else "#DDDDDD", linewidth=1.2 if is_bound else 0.5)
    centers = [(a + b - 1) / 2 for a, b in pairwise(bounds)]
    axes.set_xticks(centers, names)
    axes.set_yticks(centers, names)
    axes.tick_params(length=0)
    axes.set_xlabel("keys")
    axes.set_ylabel("queries")
    axes.set_title(title)


def draw_calls() -> None:
    """Draws a sample's products beside those of one causal row."""
    layout = RowLayout.from_lengths(LENGTHS)
    (sample,) = layout.samples
    bounds = [0, *(x.stop for x in sample.inputs), sample.output.stop]
    names = ["$x_1$", "$x_2$", "$x_3$", "$y$"]
    grid = products(plan_row(layout, "uniform"), layout.num_tokens, sample.output.start)
    plain = 4 * np.tril(np.ones_like(grid))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 5.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.15)
    draw_grid(left, grid, bounds, names, f"MISO: {np.count_nonzero(grid)} products")
    draw_grid(right, plain, bounds, names, f"one causal row: {np.count_nonzero(plain)} products")
    patches = [
        Patch(facecolor=INPUTS, edgecolor="black", label="call (a): each input over itself"),
        Patch(facecolor=OUTPUT, edgecolor="black", label="call (a): the output over itself"),
        Patch(facecolor=PAIRS, edgecolor="black", label="call (b): the output over each input"),
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)
    save(figure, "calls.svg")


def draw_positions() -> None:
    """Draws the tokens of a sample by position."""
    layout = RowLayout.from_lengths(LENGTHS)
    (sample,) = layout.samples
    positions = layout.position_ids.tolist()
    figure, axes = plt.subplots(figsize=(8, 2.9), layout="constrained")
    names = ["$x_1$", "$x_2$", "$x_3$", "$y$"]
    spans = [*sample.inputs, sample.output]
    for line, (name, span) in enumerate(zip(names, spans, strict=True)):
        is_output = span is sample.output
        for token in range(*span):
            place = (positions[token] - 0.5, -line - 0.4)
            axes.add_patch(Rectangle(place, 1, 0.8, facecolor=OUTPUT if is_output else INPUTS, edgecolor="black"))
            axes.text(positions[token], -line, positions[token], ha="center", va="center")
        axes.text(-0.9, -line, name, ha="right", va="center")
    axes.axvline(max(map(len, sample.inputs)) - 0.5, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(-1.6, max(positions) + 0.7)
    axes.set_ylim(-3.6, 0.6)
    axes.set_yticks([])
    axes.set_xticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title("Positions: every input ends where the output begins")
    save(figure, "positions.svg")


def draw_words(axes: Any, inputs: list[list[str]], output: list[str], labels: list[str], positions: Any) -> None:
    """Draws inputs and output by position, a box for each word; a line of its own for each of them."""
    layout = RowLayout.from_lengths([([len(words) for words in inputs], len(output))], positions)
    (sample,) = layout.samples
    places = layout.position_ids.tolist()
    for line, (span, words) in enumerate(zip((*sample.inputs, sample.output), (*inputs, output), strict=True)):
        colour = OUTPUT if span is sample.output else INPUTS
        for token, word in zip(range(*span), words, strict=True):
            place = (places[token] - 0.5, -line - 0.4)
            axes.add_patch(Rectangle(place, 1, 0.8, facecolor=colour, edgecolor="black"))
            axes.text(places[token], -line, word, ha="center", va="center", fontsize=9)
        axes.text(-0.8, -line, labels[line], ha="right", va="center")
    axes.set_xlim(-4.2, max(places) + 0.7)
    axes.set_ylim(-len(inputs) - 0.6, 0.6)
    axes.set_axis_off()


def draw_inputs() -> None:
    """Draws one instruction as the inputs of para and of succ; words stand for tokens."""
    (para,), (succ,) = to_samples(RECORD, "para"), to_samples(RECORD, "succ")
    parallel = [str(entry.messages[-1]["content"]).split() for entry in para.inputs]
    chunks = [list(chunk) for chunk in np.array_split(str(succ.inputs[0].messages[-1]["content"]).split(), 3)]
    output = RECORD.output.split()
    figure, axes = plt.subplots(
        2, 1, figsize=(9.5, 5.4), layout="constrained", height_ratios=[len(parallel) + 1, len(chunks) + 1]
    )
    names = [f"$x_{i}$  {entry.role}" for i, entry in enumerate(para.inputs, start=1)]
    draw_words(axes[0], parallel, output, [*names, "$y$  output"], "aligned")
    axes[0].set_title("para: parallel inputs, each of them followed by the output at once")
    names = [f"$x_{i}$  chunk" for i in range(1, len(chunks) + 1)]
    draw_words(axes[1], chunks, output, [*names, "$y$  output"], "successive")
    axes[1].set_title("succ: one input in chunks, whose positions run on")
    save(figure, "inputs.svg")


def save(figure: Any, name: str) -> None:
    """Writes a picture without its date, so that the same picture is the same file."""
    figure.savefig(FOLDER / name, metadata={"Date": None})


def main() -> None:
    """Draws them all."""
    mpl.rcParams.update({"font.size": 11, "svg.hashsalt": "misotune", "svg.fonttype": "path"})
    draw_calls()
    draw_inputs()
    draw_positions()


if __name__ == "__main__":
    main()
