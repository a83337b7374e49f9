"""A comparison on one self-contained HTML page: no script, no request to anywhere, light and dark."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from misotune.evaluation.comparison import words
from misotune.evaluation.comparison.compare import Comparison
from misotune.evaluation.comparison.difference import Difference, verdict
from misotune.evaluation.comparison.metrics import Sample
from misotune.evaluation.comparison.statistics import NUM_RESAMPLES, SEED
from misotune.report.figure_names import figure_name

# Wins and losses shown with their texts, each: a page of some thousand responses opens slowly.
MOST_SHOWN = 200

_HERE = Path(__file__).parent
_ID = re.compile(r'(\bid="|url\(#|href="#)')


def render_page(comparison: Comparison, pictures: Mapping[str, str], now: datetime | None = None) -> str:
    """Returns the page's HTML.

    Args:
        comparison: What was found.
        pictures: The pictures as SVG files hold them, by what they show.
        now: The time that the page bears; None for now.
    """
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    style = [resources.files("misotune.report") / "page.css", _HERE / "page.css"]
    return environment.get_template("page.html.jinja").render(
        comparison=comparison,
        names=words.lettered_names(comparison.results),
        css=Markup("\n".join(file.read_text(encoding="utf-8").strip() for file in style)),
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


def inline_svg(text: str, prefix: str) -> Markup:
    """Returns the `svg` element of a file of matplotlib's, which escapes texts, for a place inside a page.

    Args:
        text: The file.
        prefix: What every id in it begins with, so that no two pictures of a page share one.
    """
    element = text[text.index("<svg") :]
    return Markup(_ID.sub(lambda match: f"{match[1]}{prefix}-", element))


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
