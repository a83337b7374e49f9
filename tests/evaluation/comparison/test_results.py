import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from tests.evaluation.comparison.result_rows import TYPES, ifeval_row, scored_row

from misotune.errors import RunError, UsageError
from misotune.evaluation.comparison import page
from misotune.evaluation.comparison.compare import compare_results
from misotune.evaluation.comparison.results import write_comparison
from misotune.evaluation.comparison.words import count_heading, count_text, lettered_names, p_text, reach, sentence

EVIL = "<script>alert(1)</script> & <img src=x onerror='alert(2)'> </p></details> $x^2$"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Tree(HTMLParser):
    """Takes a page apart: its tags, its texts, its ids; fails where a tag is not closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts, self.ids = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        linked = {name for name, value in attributes if "//" in (value or "") and not name.startswith("xmlns")}
        assert not linked | {name for name, _ in attributes if name in ("src", "onerror")}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def comparison(write):
    def rows(chance, response):
        return [
            ifeval_row(k, [(k * 7 + i) % 10 < chance for i in range(1 + k % 3)], response=response) for k in range(60)
        ]

    a = write("models/evil <b>", rows(6, "Fine."), model=f"models/{EVIL}")
    b, c = write("b", rows(9, EVIL)), write("c", rows(6, "Rain."))
    return compare_results([a, b, c])


@pytest.fixture
def written(comparison, tmp_path):
    write_comparison(tmp_path / "out", comparison)
    return tmp_path / "out"


def test_the_folder_holds_the_numbers_the_pictures_and_the_page(written, comparison):
    assert sorted(path.name for path in written.iterdir()) == [
        "bars.png", "bars.svg", "comparison.html", "comparison.json", "forest.png", "forest.svg",
    ]  # fmt: skip
    assert json.loads((written / "comparison.json").read_text()) == json.loads(json.dumps(comparison.to_json()))
    assert all((written / name).read_bytes().startswith(b"\x89PNG") for name in ("bars.png", "forest.png"))


def test_a_response_with_html_in_it_is_shown_and_not_run(written):
    text = (written / "comparison.html").read_text(encoding="utf-8")
    tree = Tree(text)
    assert not {"script", "img", "link"} & set(tree.tags)
    assert "alert(1)" in text
    assert "<script" not in text
    assert "<img" not in text
    assert EVIL in tree.texts


def test_the_page_loads_nothing_and_has_no_id_twice(written):
    text = (written / "comparison.html").read_text(encoding="utf-8")
    tree = Tree(text)
    assert "default-src 'none'" in text
    assert set(re.findall(r'https?://[^"\s<]+', text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert tree.tags.count("svg") == 2
    assert len(tree.ids) == len(set(tree.ids)) > 50
    used = set(re.findall(r"url\(#([\w.-]+)\)", text)) | set(re.findall(r'href="#([\w.-]+)"', text))
    assert used <= set(tree.ids)


def test_the_page_has_verdicts_tables_and_both_texts_of_wins_and_losses(written, comparison):
    tree = Tree((written / "comparison.html").read_text(encoding="utf-8"))
    for pair in comparison.pairs:
        assert sentence(pair.main, pair.letters) in tree.texts
    assert {"B against A", "C against A", "within the noise", "B is better", *TYPES} <= set(tree.texts)
    num_examples = sum(len(pair.wins) + len(pair.losses) for pair in comparison.pairs)
    assert comparison.pairs[0].wins
    assert tree.texts.count("Prompt") == num_examples
    assert tree.texts.count("Fine.") == num_examples


def test_noise_stands_where_p_is_not_corrected(comparison):
    # Beside Holm's p a difference above the noise would be called "within the noise".
    texts = Tree(page.render_page(comparison, {})).texts
    assert texts.count("noise") == len(comparison.pairs)


def test_the_page_says_how_clusters_are_taken_where_there_are_some(comparison, write):
    assert "Clusters" not in Tree(page.render_page(comparison, {})).texts
    rows = [scored_row(k, {"em": k % 2}, cluster=k // 2) for k in range(20)]
    texts = Tree(page.render_page(compare_results([write("x", rows), write("y", rows)]), {})).texts
    assert "Clusters" in texts
    assert any(text.startswith("Note: the 20 prompts make up 10 clusters that share a text; ") for text in texts)


def test_many_wins_are_cut_and_the_page_says_how_many(comparison, monkeypatch):
    monkeypatch.setattr(page, "MOST_SHOWN", 3)
    text = page.render_page(comparison, {})
    num_wins = len(comparison.pairs[0].wins)
    assert f"{num_wins - 3} more; their keys are in comparison.json" in text
    assert Tree(text).texts.count("Prompt") == 3


@pytest.mark.parametrize("name", ["forest.svg", "bars.svg"])
def test_a_picture_names_models_task_types_and_numbers(written, name):
    text = (written / name).read_text(encoding="utf-8")
    shown = " ".join(ElementTree.fromstring(text).itertext())
    for label in ("A: details> $x^2$", "B: b", "C: c", "ifeval, 60 prompts", f"{TYPES[0]} (60)", f"{TYPES[2]} (20)"):
        assert label in shown
    if name == "forest.svg":
        assert "prompt strict (60)" in shown


def test_pictures_and_numbers_are_the_same_each_time(written, comparison, tmp_path):
    write_comparison(tmp_path / "again", comparison)
    for name in ("comparison.json", "forest.svg", "bars.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (written / name).read_bytes()


def test_results_without_parts_have_pictures_of_their_figures(write, tmp_path):
    a, b = (write(name, [scored_row(k, {"em": k % 2}) for k in range(9)], task="squad") for name in ("x/m", "y/m"))
    comparison = compare_results([a, b])
    assert comparison.pictured_kind == ""
    write_comparison(tmp_path / "out", comparison)
    assert "em (9)" in (tmp_path / "out" / "bars.svg").read_text()


def test_an_older_comparison_is_replaced_and_other_files_are_not(written, comparison, tmp_path):
    write_comparison(written, comparison)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="holds files that are no comparison"):
        write_comparison(tmp_path, comparison)
    with pytest.raises(UsageError, match="is a file"):
        write_comparison(tmp_path / "file", comparison)
    with pytest.raises(RunError, match="the comparison cannot be written: Not a directory"):
        write_comparison(tmp_path / "file" / "out", comparison)


def test_names_are_short_and_all_different(write):
    def names(*models):
        rows = [ifeval_row(1, [1])]
        return lettered_names(compare_results([write(f"n{i}", rows, model=m) for i, m in enumerate(models)]).results)

    assert names("runs/one", "hub/two") == ["A: one", "B: two"]
    assert names("runs/one", "old/one") == ["A: runs/one", "B: old/one"]
    assert [name[-3:] for name in names("same", "same")] == ["/n0", "/n1"]
    assert names("x" * 90, "y") == [f"A: …{'x' * 39}", "B: y"]


def test_a_sentence_says_what_could_have_been_shown(comparison, write):
    same = comparison.pairs[1].main
    assert sentence(same, ("A", "C")).startswith("within the noise: prompt strict ")
    assert sentence(same, ("A", "C")).endswith(
        "a difference below 10.0 points cannot be told from chance on 60 prompts"
    )
    few = compare_results([write("f", [ifeval_row(1, [1])])] * 2).pairs[0].main
    assert reach(few) == "1 prompt could show no difference at all"


def test_parts_are_counted_where_prompts_have_several(comparison):
    prompt, instruction = comparison.pairs[0].overall[:2]
    assert (count_heading([prompt]), count_text(prompt)) == ("prompts", "60")
    assert (count_heading([prompt, instruction]), count_text(instruction)) == ("prompts (parts)", "60 (120)")


@pytest.mark.parametrize(
    ("p", "text"), [(0.05, "0.0500"), (0.0496, "0.0496"), (0.99999, "1"), (0.9, "0.900"), (0, "<0.001")]
)
def test_p_values_near_the_threshold_are_not_rounded_onto_it(p, text):
    assert p_text(p) == text
