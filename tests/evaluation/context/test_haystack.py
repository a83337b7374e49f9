import gzip
import json
import re

import pytest

from misotune.errors import DataError
from misotune.evaluation.context.haystack import hide_needle, longest_start, read_haystack

NEEDLE = "Here is it."


def test_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path):
    for name, text in (("b.txt", "Second\nfile."), ("a.txt", "\ufeffFirst  file. "), ("c.md", "No.")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_haystack(tmp_path) == ["First", "file.", "Second", "file."]
    assert read_haystack(tmp_path / "b.txt") == ["Second", "file."]


def test_rows_are_read_in_their_order(tmp_path):
    rows = "".join(json.dumps({"name": n, "text": f"Text {n}."}) + "\n" for n in (2, 1))
    (tmp_path / "a.jsonl").write_text(rows)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(rows)
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert read_haystack(tmp_path / name) == ["Text", "2.", "Text", "1."]


def test_the_real_essays_hold_all_their_words(shared_data):
    path = shared_data / "haystack" / "paul_graham_essays.jsonl.gz"
    with gzip.open(path, "rt") as file:
        expected = [word for line in file for word in json.loads(line)["text"].split()]
    assert read_haystack(path) == expected
    assert len(expected) > 110_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "One."}\n{"body": "Two."}\n', r"a.jsonl line 2: needs a field 'text'"),
        ("a.jsonl", b"not json\n", r"a.jsonl line 1: not JSON"),
        ("a.jsonl.gz", b"not gzip", r"a.jsonl.gz: cannot be read"),
        ("a.txt", b"no end of a sentence here", r"a.txt: no sentence ends in it"),
        ("a.txt", b"", r"a.txt: no sentence ends in it"),
        ("a.txt", b"caf\xe9. ", r"a.txt: not UTF-8 text: .* at byte 3"),
        ("a.pdf", b"One. Two.", r"a.pdf: a haystack is a .txt file, a folder of them, or .jsonl\(.gz\)"),
    ],
)
def test_a_wrong_haystack_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_haystack(tmp_path / name)


def test_a_missing_file_and_a_folder_without_texts_are_named(tmp_path):
    with pytest.raises(DataError, match=r"b.txt: cannot be read: No such file"):
        read_haystack(tmp_path / "b.txt")
    with pytest.raises(DataError, match=r"no .txt file in this folder"):
        read_haystack(tmp_path)


@pytest.mark.parametrize("depth", [0, 1, 10, 33, 50, 67, 99, 100])
@pytest.mark.parametrize("cut", [None, 777])
def test_the_needle_stands_behind_the_nearest_earlier_sentence_end(text, depth, cut):
    text = text[:cut].strip()
    document = hide_needle(text, NEEDLE, depth)
    assert document.count(NEEDLE) == 1
    before, after = (part.strip() for part in document.split(NEEDLE))
    # Every sentence of the made text begins with "Number".
    starts = [match.start() for match in re.finditer(" Number|$", text)]
    ends = [0, *(start for start in starts if text[:start].rstrip('"').endswith((".", "!", "?")))]
    allowed = [end for end in ends if end <= len(text) * depth / 100]
    assert before == text[: max(allowed)]
    assert after == ("" if depth == 100 else text[max(allowed) :].strip())


@pytest.mark.parametrize(
    ("text", "depth", "document"),
    [
        ("", 50, NEEDLE),
        ("no end", 50, f"{NEEDLE} no end"),
        ("no end", 100, NEEDLE),
        ("It is 2.5 m (or 3.) long. Yes.", 99, f"It is 2.5 m (or 3.) long. {NEEDLE} Yes."),
        ("It is 2.5 m (or 3.) long. Yes.", 70, f"It is 2.5 m (or 3.) {NEEDLE} long. Yes."),
        ("“Yes.” He went. ", 50, f"“Yes.” {NEEDLE} He went."),
        ("One. Two.", 100, f"One. Two. {NEEDLE}"),
    ],
)
def test_the_needles_place_in_odd_texts(text, depth, document):
    assert hide_needle(text, NEEDLE, depth) == document


def test_the_longest_start_is_that_of_a_loop(text):
    words = text.split()[:60]
    for most in range(0, 300, 7):
        expected = max(n for n in range(61) if n == 0 or len(" ".join(words[:n])) <= most)
        assert longest_start(words, lambda start, most=most: len(start) <= most) == expected
