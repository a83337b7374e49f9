"""The tables and the page of an analysis of context dependency."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

from misotune.analysis.dependency.plots import layers_in_words
from misotune.analysis.dependency.responses import Dependency, ScoredResponse, histogram, share_above
from misotune.analysis.page import Page
from misotune.analysis.table import Table, shorten

_BAR_WIDTH = 40
_NUM_ON_PAGE, _WIDTH_ON_PAGE = 10, 300


def dependency_page(dependency: Dependency, title: str, picture: Path) -> Page:
    """Returns what the page shows.

    Args:
        dependency: The scores.
        title: Model, data and number of rows.
        picture: The SVG file.
    """
    return Page(
        heading="Context dependency of responses",
        title=title,
        pictures={"histogram of the scores": picture},
        tables=ranked_tables(dependency, _NUM_ON_PAGE, _WIDTH_ON_PAGE),
        folded=[histogram_table(dependency), *([_layers_table(dependency)] if len(dependency.layers) > 1 else [])],
        notes=[summary(dependency)],
    )


def summary(dependency: Dependency) -> str:
    """Returns the numbers in a line."""
    scores, num_left_out = dependency.scores, dependency.num_left_out
    left_out = f"; {num_left_out} of {dependency.num_rows} rows left out" if num_left_out else ""
    num_cut = sum(response.is_cut for response in dependency.responses)
    cut = f"; {num_cut} cut by --max-length" if num_cut else ""
    return (
        f"{len(scores)} responses: mean {fmean(scores):.3f}, median {median(scores):.3f}, "
        f"{100 * dependency.share_above:.1f} % above {dependency.threshold:g}{left_out}{cut}"
    )


def histogram_table(dependency: Dependency) -> Table:
    """Returns the histogram from the first to the last bin that is used, with a bar for each."""
    counts = histogram(dependency.scores)
    used = [i for i, count in enumerate(counts) if count]
    rows = [
        (f"{i / len(counts):.2f}-{(i + 1) / len(counts):.2f}", str(counts[i]), _bar(counts[i], max(counts)))
        for i in range(used[0], used[-1] + 1)
    ]
    title = f"dependency scores, {layers_in_words(dependency.layers)}"
    return Table(title, ("score", "responses", ""), rows, frozenset({0, 2}))


def ranked_tables(dependency: Dependency, num_shown: int, width: int) -> list[Table]:
    """Returns the most and the least dependent responses; none where none are to be shown.

    Args:
        dependency: The scores.
        num_shown: Responses in each table.
        width: Longest text in characters.
    """
    ranked = dependency.ranked()
    ends = (("most", ranked[:num_shown]), ("least", ranked[::-1][:num_shown]))
    return [_rows_table(f"the {name} dependent", rows, width) for name, rows in ends if rows]


def _rows_table(title: str, responses: Sequence[ScoredResponse], width: int) -> Table:
    columns = ("score", "row", "response", "tokens", "user's", "the user's text")
    rows = [
        (f"{x.score:.3f}", *map(str, (x.row + 1, x.turn, x.num_tokens, x.num_user_tokens)), shorten(x.text, width))
        for x in responses
    ]
    return Table(title, columns, rows, frozenset({len(columns) - 1}))


def _layers_table(dependency: Dependency) -> Table:
    found = [(layer, dependency.at_layer(i)) for i, layer in enumerate(dependency.layers)]
    rows = [
        (str(layer), f"{fmean(x):.3f}", f"{median(x):.3f}", f"{100 * share_above(x, dependency.threshold):.1f}")
        for layer, x in found
    ]
    columns = ("layer", "mean", "median", f"above {dependency.threshold:g}, %")
    return Table("scores by layer", columns, rows, frozenset())


def _bar(count: int, most: int) -> str:
    return "#" * round(_BAR_WIDTH * count / most)
