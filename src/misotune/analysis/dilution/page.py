"""The tables and the page of an analysis of dilution."""

from collections.abc import Sequence
from pathlib import Path

from misotune.analysis.dilution.continuations import Fluency
from misotune.analysis.dilution.shares import Dilution
from misotune.analysis.page import Page
from misotune.analysis.table import Table


def dilution_tables(dilution: Dilution, fluency: Sequence[Fluency]) -> list[Table]:
    """Returns the output's share by number of inputs, and where the model wrote, how fluent its texts are."""
    means = [dilution.mean(name).tolist() for name in dilution.shares]
    rows = [[str(n), *(_percent(x) for x in values)] for n, *values in zip(dilution.counts, *means, strict=True)]
    shares = Table("the output's share of attention in percent", ("n", *dilution.shares), rows, frozenset())
    return [shares, *([_fluency_table(fluency)] if fluency else [])]


def dilution_page(dilution: Dilution, fluency: Sequence[Fluency], title: str, picture: Path) -> Page:
    """Returns what the page shows.

    Args:
        dilution: The shares.
        fluency: Of the texts; empty unless the model was to write.
        title: Model, data and number of rows.
        picture: The SVG file.
    """
    return Page(
        heading="The output's share of attention",
        title=title,
        pictures={"share of attention by number of inputs, and by layer": picture},
        tables=dilution_tables(dilution, fluency),
        folded=[_layers_table(dilution, name) for name in dilution.shares],
    )


def _fluency_table(fluency: Sequence[Fluency]) -> Table:
    rows = [
        (
            str(entry.num_inputs or "-"),
            entry.weighting,
            f"{entry.perplexity:.2f}",
            f"{100 * entry.repeated_4grams:.1f}",
            f"{entry.num_tokens:.1f}",
            str(entry.num_cut),
        )
        for entry in fluency
    ]
    columns = ("n", "weighting", "perplexity", "repeated 4-grams, %", "tokens", "cut")
    return Table("texts: perplexity beside the row's first input alone", columns, rows, frozenset({1}))


def _layers_table(dilution: Dilution, weighting: str) -> Table:
    by_layer = dilution.by_layer(weighting).T.tolist()
    rows = [[str(layer), *map(_percent, shares)] for layer, shares in enumerate(by_layer, start=1)]
    columns = ("layer", *(f"n = {n}" for n in dilution.counts))
    return Table(f"{weighting}: shares in percent by layer", columns, rows, frozenset())


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
