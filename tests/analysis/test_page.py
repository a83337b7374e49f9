from html.parser import HTMLParser

import pytest
import torch

from misotune.analysis.attention.results import write_attention
from misotune.analysis.attention.summary import ConstraintShare, ModelShares, RowShares
from misotune.analysis.dependency.responses import Dependency, ScoredResponse
from misotune.analysis.dependency.results import write_result as write_dependency
from misotune.analysis.dilution.continuations import Continuation
from misotune.analysis.dilution.results import write_result as write_dilution
from misotune.analysis.dilution.shares import MEASURED, Dilution

EVIL = "<script>alert(1)</script> & {{ 7 * 7 }}"
RESULT = {"settings": {"data": EVIL, "limit": 3, "write": None}, "versions": {"torch": "2.13"}, "num_left_out": 1}
COMMAND = "misotune inspect 'a & b'"


class Reader(HTMLParser):
    """Collects the tags, what they point to, the ids and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.ids, self.words = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def write_attention_page(folder):
    shares = torch.full((2, 3), 0.1)
    constraints = tuple(ConstraintShare(EVIL, 4, is_met, shares) for is_met in (True, False))
    row = RowShares("row", EVIL, (1, 2, 3, 4, 5, 6), torch.full((2, 3, 6), 1 / 6), constraints)
    models = [ModelShares(name, {}, (row,)) for name in ("base", EVIL)]
    write_attention(folder, RESULT, models, EVIL, COMMAND)


def write_dependency_page(folder):
    responses = [
        ScoredResponse(i, str(i), 1, 1, (score, score / 2), 5, 6, False, f"{i}: {EVIL}")
        for i, score in enumerate((0.9, 0.1, 0.4))
    ]
    write_dependency(folder, RESULT, Dependency((1, 2), 0.6, tuple(responses), 4, 1), EVIL, COMMAND)


def write_dilution_page(folder):
    shares = {name: torch.full((3, 2, 4), 0.25) for name in MEASURED}
    texts = [Continuation("row", n, "fid", EVIL, 3, False, 0.5, 0.0) for n in (1, 2)]
    write_dilution(folder, RESULT, Dilution((1, 2), shares), texts, EVIL, COMMAND)


WRITERS = {
    "attention": (write_attention_page, 2, ("one constraint's share in percent", "met against not met", "by layer")),
    "dependency": (write_dependency_page, 1, ("the most dependent", "the least dependent", "scores by layer")),
    "dilution": (write_dilution_page, 1, ("share of attention in percent", "texts: perplexity", "fid: shares")),
}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    """A folder, its page, and what stands on it."""
    write, num_pictures, words = WRITERS[request.param]
    write(tmp_path / "found")
    return tmp_path / "found", Reader(tmp_path / "found" / "index.html"), num_pictures, words, write


def test_the_page_has_pictures_tables_settings_and_the_command(written):
    folder, page, num_pictures, words, _ = written
    assert page.tags.count("figure") == page.tags.count("svg") == num_pictures
    for word in (*words, "data", "limit", "torch", "2.13", COMMAND, *(x.name for x in folder.glob("*.svg"))):
        assert word in page.text, word
    assert "write" not in page.text.split("How it was made")[1].split("versions")[0].split()


def test_the_page_asks_nobody_for_anything(written):
    _, page, num_pictures, _, _ = written
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    # No two pictures share an id: each has a prefix of its own.
    assert {name.split("-")[0] for name in page.ids} == {f"p{i}" for i in range(num_pictures)}
    # Pictures inside a picture, as heads are drawn, are data, which the page's policy must let through.
    assert "img-src data:" in (written[0] / "index.html").read_text()


def test_texts_are_shown_as_they_are(written):
    _, page, _, _, _ = written
    assert "<script>alert(1)</script> & {{ 7 * 7 }}" in page.text


def test_the_same_result_gives_the_same_page(written, tmp_path):
    folder, _, _, _, write = written
    write(tmp_path / "again")
    assert (tmp_path / "again" / "index.html").read_bytes() == (folder / "index.html").read_bytes()


def test_the_most_and_the_least_dependent_rows_are_ranked(tmp_path):
    write_dependency_page(tmp_path / "found")
    most, least = Reader(tmp_path / "found" / "index.html").text.split("the least dependent")
    assert most.index("0: <script>") < most.index("2: <script>") < most.index("1: <script>")
    assert least.index("1: <script>") < least.index("2: <script>") < least.index("0: <script>")
