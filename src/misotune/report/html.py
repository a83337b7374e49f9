"""What the HTML pages share: template and style from files, and pictures of matplotlib's inside a page."""

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

# The style of every page but the preview's, and what the pages with matplotlib's pictures add to it.
PAGE_STYLE = Path(__file__).parent / "page.css"
PLOTS_STYLE = Path(__file__).parent / "plots.css"

_ID = re.compile(r'(\bid="|url\(#|href="#)')


@cache
def page_template(folder: Path, *styles: Path) -> tuple[Template, Markup]:
    """Returns `page.html.jinja` of a folder, which escapes what it is given, and the joined style.

    Both are read once, so that an update of misotune does not change the page of a run that goes on.
    """
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    css = "\n".join(file.read_text(encoding="utf-8").strip() for file in styles)
    return environment.get_template("page.html.jinja"), Markup(css)


def inline_svg(text: str, prefix: str) -> Markup:
    """Returns the `svg` element of a file of matplotlib's, which escapes texts, for a place inside a page.

    Args:
        text: The file.
        prefix: What every id in it begins with, so that no two pictures of a page share one.
    """
    element = text[text.index("<svg") :]
    return Markup(_ID.sub(lambda match: f"{match[1]}{prefix}-", element))
