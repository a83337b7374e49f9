import re

import pytest
from rich.console import Console
from tests.preview.conftest import make_chat, make_row

from misotune.cli.preview_terminal import Lengths, print_preview
from misotune.preview.page import Preview
from misotune.preview.rows import RowView, view_rows
from misotune.preview.statistics import measure

COLOUR = re.compile(r"\x1b\[[\d;]*\b(?:3[0-7]|9[0-7]|4[0-7]|38|48)\b")


@pytest.fixture
def show(make_reading):
    """Prints rows and returns the lines."""

    def show(rows, lengths=None, **options):
        reading = make_reading()
        views = [view if isinstance(view, RowView) else view_rows([view], reading, "row 1") for view in rows]
        found = measure([(0, list(view.rows)) for view in views], 1, reading)
        console = Console(**{"force_terminal": True, "width": 400, **options})
        with console.capture() as captured:
            print_preview(Preview("d", "m", {}, views, found), console, lengths)
        return captured.get().splitlines()

    return show


def test_colours_mark_the_trained_tokens_and_no_others(show):
    lines = show([make_row()], color_system="standard")
    marked = [line for line in lines if "\x1b[32m+ " in line]
    others = [line for line in lines if line.startswith("  ") and "│" in line]
    assert marked
    assert others
    for line in marked:
        pieces = re.findall(r"\x1b\[([\d;]*)m([^\x1b]*)", line)
        styles = {style for style, text in pieces if text.strip("│+ ")}
        assert styles <= {"1;32", "1;35"}, "green, and magenta for special tokens"
    assert not any("32m" in line for line in others)


def test_without_colours_the_marks_are_left(show, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    lines = show([make_row()])
    assert not any(COLOUR.search(line) for line in lines)
    assert any(line.startswith("+ ") for line in lines)


def test_lines_are_no_wider_than_the_terminal_and_lose_nothing(show):
    row = make_row(inputs=(("full", "word " * 50),), output="word " * 50)

    def token_lines(**options):
        text = "\n".join(show([row], color_system=None, **options))
        lines = text[text.index("x1 full") : text.index("attends to")].splitlines()
        return [line[2:] for line in lines if line[:2] in ("+ ", "  ")]

    tokens, wide = token_lines(width=60), token_lines()
    assert max(map(len, tokens)) <= 58
    assert "".join("".join(tokens).split()) == "".join("".join(wide).split())


def test_the_turns_in_the_middle_of_a_long_chat_are_elided_with_a_count(show):
    chat = make_chat()
    (entry,) = chat.inputs
    turns = [
        m for i in range(30) for m in ({"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{i}"})
    ]
    long_chat = type(chat)(
        "long", "", "", (type(entry)("full", (*turns, entry.messages[-1])),), "end", history_loss=True
    )
    text = "\n".join(show([long_chat], Lengths(), color_system=None))
    assert re.search(r"… [\d,]+ tokens in 54 stretches, [\d,]+ trained … \(--full shows all\)", text)
    assert "+ a│0│<|im_end|>│" in text
    assert "+ e│n│d│<|im_end|>│" in text
    assert "… " not in "\n".join(show([long_chat], None, color_system=None))


def test_a_row_that_cannot_be_encoded_is_shown_as_text(show):
    broken = RowView("row 9", (make_row("broken", output="x\x1b[2J" + "long " * 500),), problem="no proof")
    text = "\n".join(show([broken], Lengths(), color_system=None))
    assert "cannot be encoded: no proof" in text
    assert "Say <b>hi</b>.⏎" in text
    assert "x␛[2J" in text
    assert re.search(r"… [\d,]+ characters …", text)


def test_who_attends_to_whom_is_drawn(show):
    lines = [line.split() for line in show([make_row()], color_system=None)]
    picture = {line[0]: line[2:6] for line in lines if len(line) > 5 and line[0] in ("x1", "x2", "x3", "y")}
    assert picture == {
        "x1": ["◣", "·", "·", "·"],
        "x2": ["·", "◣", "·", "·"],
        "x3": ["·", "·", "◣", "·"],
        "y": ["■", "■", "■", "◣"],
    }
