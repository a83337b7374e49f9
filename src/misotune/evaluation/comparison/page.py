"""A comparison on one self-contained HTML page: no script, no request to anywhere, light and dark."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from misotune.evaluation.comparison import words
from misotune.evaluation.comparison.compare import Comparison
from misotune.evaluation.comparison.difference import Difference, verdict
from misotune.evaluation.comparison.metrics import Sample
from misotune.evaluation.comparison.statistics import NUM_RESAMPLES, SEED
from misotune.report.figure_names import figure_name
from misotune.report.html import PAGE_STYLE, PLOTS_STYLE, inline_svg, page_template

# Wins and losses shown with their texts, each: a page of some thousand responses opens slowly.
MOST_SHOWN = 200

_HERE = Path(__file__).parent


def render_page(comparison: Comparison, pictures: Mapping[str, str], now: datetime | None = None) -> str:
    """Returns the page's HTML.

    Args:
        comparison: What was found.
        pictures: The pictures as SVG files hold them, by what they show.
        now: The time that the page bears; None for now.
    """
    template, css = page_template(_HERE, PAGE_STYLE, PLOTS_STYLE, _HERE / "page.css")
    return template.render(
        comparison=comparison,
        names=words.lettered_names(comparison.results),
        css=css,
        pictures={label: inline_svg(text, f"p{at}") for at, (label, text) in enumerate(pictures.items())},
        now=(now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        most_shown=MOST_SHOWN,
        num_resamples=f"{NUM_RESAMPLES:,}",
        seed=SEED,
        words=words,
        figure_name=figure_name,
        verdict=verdict,
        by_metric=by_metric,
        marks=marks,
    )


def by_metric(table: Sequence[Difference]) -> dict[str, list[Difference]]:
    """Returns a table's lines by metric, in their order."""
    return {name: [x for x in table if x.metric == name] for name in dict.fromkeys(line.metric for line in table)}


def marks(a: Sample, b: Sample) -> list[tuple[str, Sequence[tuple[str, bool]]]]:
    """Returns of each part of a prompt its type, and a mark and whether it is met for A and for B.

    The marks are those of the first metric that has parts; without one, there are none.
    """
    metric = next((name for name, value in a.values.items() if isinstance(value, tuple)), None)
    if metric is None:
        return []
    of_a, of_b = a.values[metric], b.values[metric]
    assert isinstance(of_a, tuple)
    assert isinstance(of_b, tuple)
    labels = a.types or tuple(str(number) for number in range(1, 1 + len(of_a)))
    return [
        (label, [(_mark(score), score == 1) for score in scores])
        for label, *scores in zip(labels, of_a, of_b, strict=True)
    ]


def _mark(score: float) -> str:
    return {1.0: "met", 0.0: "not met"}.get(score) or f"{words.percent(score)} %"
