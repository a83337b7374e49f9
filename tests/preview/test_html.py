import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.preview.conftest import make_chat, make_row

import misotune.preview
from misotune.errors import UsageError
from misotune.layout import Chunking, encode_sample
from misotune.preview.html import render_page, write_page
from misotune.preview.page import Preview
from misotune.preview.rows import RowView, Segment, Token, view_rows
from misotune.preview.statistics import measure
from misotune.preview.tokens import PART_SIGN, visible

VOID = {"meta", "br", "img", "link", "hr", "input"}
CSS = (Path(misotune.preview.__path__[0]) / "page.css").read_text()


class Page(HTMLParser):
    """Reads a page; refuses what is not nested. Notes tokens as (id, position, text, is_trained)."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.tokens, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        title = dict(attrs).get("title")
        if tag not in VOID:
            self.open.append((tag, title))
        if tag == "span" and title:
            token, position = map(int, re.fullmatch(r"id (\d+), position (\d+)", title).groups())
            self.tokens.append((token, position, "", any(name == "mark" for name, _ in self.open)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1][0] == "span" and self.open[-1][1]:
            token, position, text, is_trained = self.tokens[-1]
            self.tokens[-1] = (token, position, text + data, is_trained)


@pytest.fixture
def make_preview(make_reading):
    def make(rows, reading=None, **fields):
        reading = reading or make_reading()
        shown = [view_rows([row], reading, f"row {i}") for i, row in enumerate(rows, 1)]
        found = measure([(i, [row]) for i, row in enumerate(rows)], len(rows), reading)
        return Preview(
            **{"dataset": "data/<x>", "model": "m", "settings": {"mode": "para"}, **fields},
            rows=shown,
            statistics=found,
        )

    return make


@pytest.mark.parametrize("row", [make_row(), make_chat()], ids=["para", "chat"])
def test_every_token_stands_there_and_the_trained_ones_alone_are_marked(row, template, make_preview):
    preview = make_preview([row])
    page = Page(render_page(preview))
    encoded = encode_sample(row, template)
    ids = [i for part in (*encoded.inputs, encoded.output) for i in part.tolist()]
    assert [token for token, *_ in page.tokens] == ids
    flags = [False] * encoded.num_input_tokens + encoded.is_trained.tolist()
    assert [is_trained for *_, is_trained in page.tokens] == flags
    (sample,) = preview.rows[0].samples
    tokens = [token for segment in sample.segments for token in segment.tokens]
    assert [position for _, position, *_ in page.tokens] == [token.position for token in tokens]
    assert [text for _, _, text, _ in page.tokens] == [visible(token.text) or PART_SIGN for token in tokens]


def test_the_page_asks_for_nothing_and_runs_nothing(make_preview):
    row = make_row("x\"><script src='http://evil'>", output="<img src=http://evil onerror=alert(1)> &amp; <b>")
    text = render_page(make_preview([row], account=[(0, "<i>rows</i>", 3)]))
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "i", "b"} & set(page.tags)
    assert not {name for name, _ in page.attributes if name.startswith("on")}
    links = [value for name, value in page.attributes if name in ("href", "src", "action", "data", "srcset")]
    assert links
    assert all(re.fullmatch(r"#[\w-]+", link) for link in links)
    assert not re.search(r"url\(|@import|https?:", CSS)
    policy = dict(page.attributes)["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'" or ("content", policy) in page.attributes
    for shown in (row.id, "data/<x>", "<i>rows</i>"):
        assert shown in page.text


def test_a_token_that_is_a_tag_is_text(make_preview):
    preview = make_preview([make_row()])
    (sample,) = preview.rows[0].samples
    token = Token(7, "<script>alert(1)</script>&amp;", 0, is_trained=True, is_special=False)
    segments = (*sample.segments[:-1], Segment("y", "output", (token,)))
    row = replace(preview.rows[0], samples=(replace(sample, segments=segments),))
    page = Page(render_page(replace(preview, rows=[row])))
    assert "script" not in page.tags
    assert page.tokens[-1] == (7, 0, token.text, True)


def test_ids_are_unique_and_links_lead_somewhere(make_preview):
    page = Page(render_page(make_preview([make_row("a"), make_row("b")], account=[(0, "read", 2)])))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in page.attributes if name == "href"} <= set(ids)


def test_pictures_are_drawn_from_the_spans_and_have_names(make_preview, make_reading):
    chunking = Chunking({4: 1.0}, seed=0)
    row = make_row(inputs=(("chunked", "question " * 30),))
    preview = make_preview([row], make_reading("succ", "successive", chunking=chunking))
    text = render_page(preview)
    page = Page(text)
    assert page.tags.count("svg") == 5  # the attention, and four histograms
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert any("of 4 inputs each sees only itself" in label for label in labels)
    blocks = re.findall(r'<path class="block \w+" d="M([\d.]+) ([\d.]+)v([\d.]+)h([\d.]+)', text)
    (sample,) = preview.rows[0].samples
    sizes = [len(span) for span in sample.segment_spans]
    scale = float(blocks[0][2]) / sizes[0]
    for (_, _, height, width), (queries, keys, _) in zip(blocks, sample.attention(), strict=True):
        assert float(height) == pytest.approx(max(15, sizes[queries] * scale), abs=0.1)
        assert float(width) == pytest.approx(max(15, sizes[keys] * scale), abs=0.1)


def test_a_row_that_cannot_be_encoded_is_shown_as_text(make_preview):
    preview = make_preview([make_row()])
    broken = RowView("row 9", (make_row("broken", output="<script>\x1b[2J"),), problem="a <reason>")
    page = Page(render_page(Preview("d", "m", {}, [broken], preview.statistics)))
    assert "Cannot be encoded: a <reason>" in page.text
    assert "<script>␛[2J" in page.text
    assert "Say <b>hi</b>.⏎\nBe brief." in page.text
    assert page.tokens == []


def test_long_texts_are_elided_in_the_middle_and_whole_when_asked(make_preview, template):
    row = make_row(inputs=(("full", "q"),), output="long " * 1000)
    preview = make_preview([row])
    number = encode_sample(row, template).num_tokens
    page = Page(render_page(preview))
    (hidden,) = re.findall(r"… ([\d,]+) tokens …", page.text)
    assert len(page.tokens) + int(hidden.replace(",", "")) == number
    assert len(Page(render_page(preview, full=True)).tokens) == number


def test_a_dataset_of_which_training_keeps_nothing_has_a_page(make_preview, make_reading):
    page = Page(render_page(make_preview([make_row()], make_reading(max_length=3))))
    assert "Training leaves out 1: too long" in " ".join(page.text.split())


def test_a_page_that_cannot_be_written_is_one_line(make_preview, tmp_path):
    with pytest.raises(UsageError, match=r"--html .*: cannot be written \(Is a directory\)"):
        write_page(make_preview([make_row()]), tmp_path)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(theme):
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[theme]))
    shades = [name for name in colours if name.endswith(("-a", "-b"))]
    assert len(shades) == 12
    pairs = [("ink", shade) for shade in shades] + [("special", shade) for shade in shades]
    pairs += [(text, ground) for text in ("ink", "soft", "warn", "trained", "full") for ground in ("page", "card")]
    pairs += [(role, "card") for role in ("full", "constraint", "base", "chunk", "output")]
    weak = {pair: ratio for pair in pairs if (ratio := contrast(colours[pair[0]], colours[pair[1]])) < 4.5}
    assert weak == {}
